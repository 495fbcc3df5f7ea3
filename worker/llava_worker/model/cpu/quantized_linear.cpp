// Computes y = x W^T + b, with W quantized to 8, 5 or 4 bits and x quantized to 8 bits. Sums within a group are exact
// 32-bit integers.
//
// A group is a range of inputs in one row that share a scale, so an outlier reduces precision only within its group.
//
// Weights are packed in panels of 32 outputs. Within a panel, four inputs of one output are adjacent, as the
// dot-product instruction requires: [outputs / 32][inputs / 4][32][4] codes. An 8-bit code is a weight plus 128, because
// one operand of the instruction must be unsigned. To compensate, accumulators are initialized to -128 times the sum of
// the group's inputs. A 4-bit or 5-bit code is an index into a codebook of 8-bit values, to which 128 is also added.
//
// The low four bits of codes i (low half) and 16 + i (high half) of a panel share a byte. With 5 bits, the low four bits
// of a group, 1,024 bytes per panel, are followed by the fifth bits, 256 bytes: [inputs / 4][32][4] bits.
//
// x is quantized into tiles of a few rows, [inputs / 4][rows][4] bytes. A panel stays in the L2 cache while it is
// multiplied by all tiles, so weights are read from memory only once, no matter how many rows x has. If there are several
// tiles, the next panel is prefetched meanwhile. If there are many, 4-bit and 5-bit panels are first unpacked to the L2
// cache.
#include <algorithm>
#include <utility>
#include <vector>

#include "quantized_linear_amx.h"
#include "team_kernels.h"

namespace {

// The largest tiles of x with few rows, and of x with more rows (see is_prompt).
#ifdef __AVX512F__
// With 12 rows, 24 of the 32 registers are accumulators of integers, and those of fp32 values are in memory. With six
// rows, both are in registers.
constexpr int MAX_ROWS = 12, PROMPT_ROWS = 6;
// Panels that one row is multiplied by at a time. A single stream of weights is read faster than two.
constexpr int PANELS_PER_ROW = 1;
#else
constexpr int MAX_ROWS = 3, PROMPT_ROWS = 3;
// Without an instruction for dot products of bytes, one row is limited by compute, and two panels share work.
constexpr int PANELS_PER_ROW = 2;
#endif
constexpr int64_t MIN_UNPACKED_ROWS = 65;  // with fewer rows, unpacking 4-bit or 5-bit panels saves no time
constexpr int64_t PREFETCH_BYTES = 4096;   // prefetch distance

struct RowTile {
  int64_t first;
  int rows;
  int8_t* inputs;    // [padded / 4][rows][4]
  int32_t* offsets;  // [groups][rows]
  float* scales;     // [groups][rows]
};

// Whether there are several tiles, which are small, and panels are prefetched for all of them at once.
bool is_prompt(int64_t rows) { return rows > MAX_ROWS; }

template <int BITS>
bool is_unpacked(int64_t rows) { return BITS != 8 && rows >= MIN_UNPACKED_ROWS; }

int64_t num_tiles(int64_t rows) {
  int64_t largest = is_prompt(rows) ? PROMPT_ROWS : MAX_ROWS;
  return (rows + largest - 1) / largest;
}

RowTile tile_of(int64_t t, int64_t rows, const QuantizedWeight& w, QuantizedRows& quantized) {
  int64_t count = num_tiles(rows), first = rows * t / count, last = rows * (t + 1) / count;
  return {first, int(last - first), quantized.codes.data() + first * w.padded,
          quantized.offsets.data() + first * w.groups(), quantized.scales.data() + first * w.groups()};
}

// Quantizes group g of the rows of a tile. Threads that quantize different groups write to different cache lines.
template <class T>
void quantize(const T* x, int64_t size, const QuantizedWeight& w, const RowTile& tile, int g) {
  int8_t codes[MAX_GROUP];
  for (int r = 0; r < tile.rows; r++) {
    int64_t i = int64_t(g) * tile.rows + r;
    int64_t count = quantize_group(x + (tile.first + r) * size, size, w, g, codes, tile.scales[i], tile.offsets[i]);
    int8_t* to = tile.inputs + int64_t(g) * w.group_size * tile.rows + r * 4;
    for (int64_t k = 0; k < count; k += 4) std::memcpy(to + k * tile.rows, codes + k, 4);
  }
}

// --- products ---

// Weights and scales are prefetched explicitly, because the hardware prefetcher stops at page boundaries. With few rows,
// the target is the L1 cache: consecutive panels are one stream of weights, and the scales are another one.
template <int BITS>
INLINE void prefetch_weights(const uint8_t* group, int64_t step) {
  constexpr int BYTES = BITS == 8 ? 128 : 64;
  for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(group + step * BYTES + i + PREFETCH_BYTES);
  if (BITS == 5 && step % 4 == 0) __builtin_prefetch(group + NIBBLE_BYTES + step * 16 + PREFETCH_BYTES);
}

INLINE void prefetch_scales(const QuantizedWeight& w, int groups, int64_t panel, int g) {
  constexpr int64_t GROUPS_AHEAD = PREFETCH_BYTES / NIBBLE_BYTES;
  __builtin_prefetch((const bf16*)w.scales + (panel * groups + g + GROUPS_AHEAD) * PANEL_OUTPUTS);
}

// Number of steps, of four inputs each, between prefetches of the next panel. 8-bit weights have more lines.
template <bool HAS_GROUP_SCALES>
constexpr int64_t PREFETCH_STEPS = HAS_GROUP_SCALES ? WEIGHT_GROUP / 4 : 4;

// Prefetches the next panel into the L2 cache while all tiles are multiplied by the current one, a few cache lines at a
// time. With more lines at a time, loads of weights from the L2 cache would have to wait for the prefetches.
struct NextPanel {
  const uint8_t *next, *end;
  int64_t bytes_at_once;

  INLINE void prefetch_some() {
    const uint8_t* until = std::min(end, next + bytes_at_once);
    for (; next < until; next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// The weights of consecutive panels, as they are in memory or, with 8 bits per code, unpacked.
struct Panels {
  const QuantizedWeight& w;
  const ValueTables& tables;
  const uint8_t* codes;  // of the first panel
  int64_t first;         // index of the first panel
};

// How panels are multiplied by tiles.
template <int BITS, bool HAS_GROUP_SCALES, bool IS_PROMPT>
struct Mode {
  static constexpr int bits = BITS;                           // per code
  static constexpr bool has_group_scales = HAS_GROUP_SCALES;  // 4-bit and 5-bit weights, even if unpacked
  static constexpr bool is_prompt = IS_PROMPT;
  static constexpr int max_rows = IS_PROMPT ? PROMPT_ROWS : MAX_ROWS;
};

// Multiplies PANELS panels by the rows of a tile.
template <class Mode, int ROWS, int PANELS, class T>
void multiply(const Panels& panels, const RowTile& tile, const float* bias, T* y, NextPanel& next) {
  constexpr int BITS = Mode::bits;
  constexpr bool HAS_GROUP_SCALES = Mode::has_group_scales;
  const QuantizedWeight& w = panels.w;
  const int groups = w.groups();
  const int64_t bytes = w.padded * PANEL_OUTPUTS * BITS / 8, group_bytes = w.group_size * PANEL_OUTPUTS * BITS / 8;
  const ValueTables tables = panels.tables;
  const uint8_t* group = panels.codes;
  const int8_t* inputs = tile.inputs;
  const int32_t* offsets = tile.offsets;
  const float* input_scales = tile.scales;
  f32x16 out[PANELS][ROWS][2] = {};
  for (int g = 0; g < groups; g++, group += group_bytes, offsets += ROWS, input_scales += ROWS) {
    if (!Mode::is_prompt && HAS_GROUP_SCALES)
      for (int p = 0; p < PANELS; p++) prefetch_scales(w, groups, panels.first + p, g);
    i32x16 acc[PANELS][ROWS][2];
    // All loops below are unrolled at once, so that the compiler keeps the accumulators in registers.
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; r++) acc[p][r][0] = acc[p][r][1] = i32x16{} + offsets[r];
    int64_t rest = w.padded - g * w.group_size;
    int64_t steps = HAS_GROUP_SCALES ? WEIGHT_GROUP / 4 : std::min<int64_t>(w.group_size, rest) / 4;
#pragma GCC unroll 2
    for (int64_t step = 0; step < steps; step++, inputs += ROWS * 4) {
      if (Mode::is_prompt && step % PREFETCH_STEPS<HAS_GROUP_SCALES> == 0) next.prefetch_some();
#pragma GCC unroll 2
      for (int p = 0; p < PANELS; p++) {
        u8x64 first, second;
        load_weights<BITS>(group + p * bytes, step, tables, first, second);
        if (!Mode::is_prompt) prefetch_weights<BITS>(group + p * bytes, step);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
          int32_t codes = read<int32_t>(inputs + r * 4);
          acc[p][r][0] = dot4_u8_s8(acc[p][r][0], first, codes);
          acc[p][r][1] = dot4_u8_s8(acc[p][r][1], second, codes);
        }
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        f32x16 scale{};
        if constexpr (HAS_GROUP_SCALES) scale = group_scale(w, groups, panels.first + p, g, half);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
          f32x16 sums = __builtin_convertvector(acc[p][r][half], f32x16);
          out[p][r][half] += HAS_GROUP_SCALES ? sums * (scale * input_scales[r]) : sums * input_scales[r];
        }
      }
  }
  // Without these pragmas, the sums in ``out`` would be in memory during the loop above, too.
#pragma GCC unroll 2
  for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      OutputHalf<HAS_GROUP_SCALES> outputs(w, bias, panels.first + p, half);
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; r++) outputs.store_row(out[p][r][half], y + (tile.first + r) * w.outputs);
    }
}

template <class T>
using Multiply = void (*)(const Panels&, const RowTile&, const float*, T*, NextPanel&);

template <class Mode, int PANELS, class T, int... R>
Multiply<T> multiply_for(int rows, std::integer_sequence<int, R...>) {
  static const Multiply<T> table[] = {multiply<Mode, R + 1, PANELS, T>...};
  return table[rows - 1];
}

// Multiplies a panel by all rows of a tile.
template <class Mode, class T>
void multiply_panel(const Panels& panel, const RowTile& tile, const float* bias, T* y, NextPanel& next) {
  multiply_for<Mode, 1, T>(tile.rows, std::make_integer_sequence<int, Mode::max_rows>())(panel, tile, bias, y, next);
}

// Multiplies up to PANELS_PER_ROW panels, starting at ``first``, by a tile that contains all rows.
template <int BITS, class T>
void multiply_few_rows(const QuantizedWeight& w, const ValueTables& tables, int64_t first, const RowTile& tile,
                       const float* bias, T* y) {
  using FewRows = Mode<BITS, BITS != 8, false>;
  const int64_t bytes = w.padded * PANEL_OUTPUTS * BITS / 8, last = std::min(first + PANELS_PER_ROW, w.panels());
  NextPanel next{};
  if (PANELS_PER_ROW > 1 && tile.rows == 1 && last - first == PANELS_PER_ROW)
    return multiply<FewRows, 1, PANELS_PER_ROW>(Panels{w, tables, w.packed + first * bytes, first}, tile, bias, y, next);
  for (int64_t p = first; p < last; p++)
    multiply_panel<FewRows>(Panels{w, tables, w.packed + p * bytes, p}, tile, bias, y, next);
}

// Multiplies panel ``p`` by all tiles. ``unpacked`` is a buffer for it.
template <int BITS, class T>
void multiply_prompt(const QuantizedWeight& w, const ValueTables& tables, int64_t p, int64_t rows,
                     QuantizedRows& quantized, uint8_t* unpacked, const float* bias, T* y) {
  const int64_t tiles = num_tiles(rows), bytes = w.padded * PANEL_OUTPUTS * BITS / 8;
  const int64_t prefetches = tiles * w.padded / (4 * PREFETCH_STEPS<BITS != 8>);
  Panels panel{w, tables, w.packed + p * bytes, p};
  NextPanel next{panel.codes + bytes, w.packed + std::min(p + 2, w.panels()) * bytes,
                 (bytes + prefetches * 64 - 1) / (prefetches * 64) * 64};
  if (!is_unpacked<BITS>(rows)) {
    for (int64_t t = 0; t < tiles; t++)
      multiply_panel<Mode<BITS, BITS != 8, true>>(panel, tile_of(t, rows, w, quantized), bias, y, next);
    return;
  }
  unpack_panel<BITS>(w, tables, p, unpacked);
  panel.codes = unpacked;
  for (int64_t t = 0; t < tiles; t++)
    multiply_panel<Mode<8, true, true>>(panel, tile_of(t, rows, w, quantized), bias, y, next);
}

// Computes y. Called by all threads of a team.
template <int BITS, class T>
void multiply_rows(const T* x, int64_t rows, int64_t inputs, const QuantizedWeight& w, const float* bias, T* y,
                   QuantizedRows& quantized) {
  const int64_t tiles = num_tiles(rows), groups = w.groups(), panels = w.panels();
  const ValueTables tables = value_tables<BITS>(w);
  static thread_local std::vector<uint8_t> unpacked;
  if (is_unpacked<BITS>(rows)) unpacked.resize(w.padded * PANEL_OUTPUTS);
#pragma omp for schedule(static) collapse(2)
  for (int64_t t = 0; t < tiles; t++)
    for (int64_t g = 0; g < groups; g++) quantize(x, inputs, w, tile_of(t, rows, w, quantized), int(g));
  if (is_prompt(rows)) {
#pragma omp for schedule(guided)  // a thread that shares its core with other programs computes fewer panels
    for (int64_t p = 0; p < panels; p++)
      multiply_prompt<BITS>(w, tables, p, rows, quantized, unpacked.data(), bias, y);
  } else {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < panels; p += PANELS_PER_ROW)
      multiply_few_rows<BITS>(w, tables, p, tile_of(0, rows, w, quantized), bias, y);
  }
}

template <int BITS, class T>
void run(const T* x, int64_t rows, int64_t inputs, const QuantizedWeight& w, const float* bias, T* y, int threads) {
#ifdef __AMX_INT8__
  if (rows >= MIN_AMX_ROWS && is_amx_permitted())
    return quantized_linear_amx<BITS>(x, rows, inputs, w, bias, y, threads);
#endif
  static thread_local QuantizedRows buffers;
  buffers.reserve(rows, w);
  QuantizedRows& quantized = buffers;  // of this thread
#pragma omp parallel num_threads(threads)
  multiply_rows<BITS>(x, rows, inputs, w, bias, y, quantized);
}

}  // namespace

template <class T>
void team::quantized_linear(int bits, const T* x, int64_t rows, int64_t inputs, const QuantizedWeight& w,
                            const float* bias, T* y, QuantizedRows& quantized) {
  if (bits == 8) multiply_rows<8>(x, rows, inputs, w, bias, y, quantized);
  else if (bits == 5) multiply_rows<5>(x, rows, inputs, w, bias, y, quantized);
  else multiply_rows<4>(x, rows, inputs, w, bias, y, quantized);
}

template void team::quantized_linear(int, const bf16*, int64_t, int64_t, const QuantizedWeight&, const float*, bf16*,
                                     QuantizedRows&);
template void team::quantized_linear(int, const float*, int64_t, int64_t, const QuantizedWeight&, const float*, float*,
                                     QuantizedRows&);

// x [rows][inputs] and y [rows][outputs] must both be bf16 or both be fp32. bias must be fp32 [outputs] or null.
extern "C" void quantized_linear(int bits, int is_bf16, const void* x, int64_t rows, int64_t inputs,
                                 const uint8_t* packed, const void* scales, const int8_t* codebook, int64_t outputs,
                                 int64_t padded, int group_size, const float* bias, void* y, int threads) {
  QuantizedWeight w{packed, scales, codebook, outputs, padded, group_size};
  auto run_for = [&](auto* typed_x, auto* typed_y) {
    if (bits == 8) run<8>(typed_x, rows, inputs, w, bias, typed_y, threads);
    else if (bits == 5) run<5>(typed_x, rows, inputs, w, bias, typed_y, threads);
    else run<4>(typed_x, rows, inputs, w, bias, typed_y, threads);
  };
  if (is_bf16) run_for((const bf16*)x, (bf16*)y);
  else run_for((const float*)x, (float*)y);
}
