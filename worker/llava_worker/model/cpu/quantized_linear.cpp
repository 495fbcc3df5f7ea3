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
// x is quantized into tiles of at most MAX_TILE_ROWS rows, [inputs / 4][rows][4] bytes. A panel stays in the L2 cache
// while it is multiplied by all tiles, so weights are read from memory only once, no matter how many rows x has.
#include <algorithm>
#include <utility>
#include <vector>

#include "quantized_linear_amx.h"
#include "team_kernels.h"

namespace {

#ifdef __AVX512F__
constexpr int MAX_TILE_ROWS = 12, FEW_ROWS = 4;  // 32 registers hold 24 accumulators, 2 weights and an input
#else
constexpr int MAX_TILE_ROWS = 3, FEW_ROWS = 1;
#endif
constexpr int64_t PREFETCH_BYTES = 4096;  // prefetch distance

struct RowTile {
  int64_t first;
  int rows;
  int8_t* inputs;   // [padded / 4][rows][4]
  int32_t* sums;    // [groups][rows]
  float* scales;    // [groups][rows]
};

int64_t num_tiles(int64_t rows) { return (rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS; }

RowTile tile_of(int64_t t, int64_t rows, const QuantizedWeight& w, QuantizedRows& quantized) {
  int64_t count = num_tiles(rows), first = rows * t / count, last = rows * (t + 1) / count;
  return {first, int(last - first), quantized.codes.data() + first * w.padded,
          quantized.sums.data() + first * w.groups(), quantized.scales.data() + first * w.groups()};
}

// Quantizes group g of the rows of a tile. Threads that quantize different groups write to different cache lines.
template <class T>
void quantize(const T* x, int64_t size, const QuantizedWeight& w, const RowTile& tile, int g) {
  int8_t codes[MAX_GROUP];
  for (int r = 0; r < tile.rows; r++) {
    int64_t scale = int64_t(g) * tile.rows + r;
    int64_t count = quantize_group(x + (tile.first + r) * size, size, w, g, codes, tile.scales[scale], tile.sums[scale]);
    int8_t* to = tile.inputs + int64_t(g) * w.group_size * tile.rows + r * 4;
    for (int64_t k = 0; k < count; k += 4) std::memcpy(to + k * tile.rows, codes + k, 4);
  }
}

// --- products ---

// Prefetches explicitly, because the hardware prefetcher stops at page boundaries. The target is the L2 cache, because
// a prefetch into the L1 cache would occupy one of its few fill buffers.
INLINE void prefetch(const uint8_t* from) { __builtin_prefetch(from + PREFETCH_BYTES, 0, 2); }

template <int BITS>
INLINE void prefetch_weights(const uint8_t* group, int64_t step) {
  constexpr int BYTES = BITS == 8 ? 128 : 64;
  for (int i = 0; i < BYTES; i += 64) prefetch(group + step * BYTES + i);
  if (BITS == 5 && step % 4 == 0) prefetch(group + NIBBLE_BYTES + step * 16);
}

template <int BITS, int ROWS, int PANELS, class T>
void multiply(const QuantizedWeight& w, const RowTile& tile, int64_t panel, const float* bias, T* y) {
  const int64_t bytes = w.padded * PANEL_OUTPUTS * BITS / 8, group_bytes = w.group_size * PANEL_OUTPUTS * BITS / 8;
  const ValueTables tables = value_tables<BITS>(w);
  const uint8_t* group = w.packed + panel * bytes;
  const int8_t* inputs = tile.inputs;
  f32x16 out[PANELS][ROWS][2] = {};
  for (int g = 0; g < w.groups(); g++, group += group_bytes) {
    i32x16 acc[PANELS][ROWS][2];
    for (int p = 0; p < PANELS; p++)
      for (int r = 0; r < ROWS; r++) acc[p][r][0] = acc[p][r][1] = i32x16{} - WEIGHT_OFFSET * tile.sums[g * ROWS + r];
    int64_t steps = BITS == 8 ? std::min<int64_t>(w.group_size, w.padded - g * w.group_size) / 4 : WEIGHT_GROUP / 4;
    for (int64_t step = 0; step < steps; step++, inputs += ROWS * 4)
      for (int p = 0; p < PANELS; p++) {
        u8x64 first, second;
        load_weights<BITS>(group + p * bytes, step, tables, first, second);
        prefetch_weights<BITS>(group + p * bytes, step);
        for (int r = 0; r < ROWS; r++) {
          int32_t codes = read<int32_t>(inputs + r * 4);
          acc[p][r][0] = dot4_u8_s8(acc[p][r][0], first, codes);
          acc[p][r][1] = dot4_u8_s8(acc[p][r][1], second, codes);
        }
      }
    for (int p = 0; p < PANELS; p++)
      for (int half = 0; half < 2; half++) {
        f32x16 scale = BITS == 8 ? f32x16{} : group_scale(w, panel + p, g, half);
        for (int r = 0; r < ROWS; r++) {
          f32x16 sums = __builtin_convertvector(acc[p][r][half], f32x16);
          float input_scale = tile.scales[g * ROWS + r];
          out[p][r][half] += BITS == 8 ? sums * input_scale : sums * (scale * input_scale);
        }
      }
  }
  for (int p = 0; p < PANELS; p++)
    for (int half = 0; half < 2; half++)
      for (int r = 0; r < ROWS; r++)
        store_outputs<BITS>(w, (panel + p) * PANEL_OUTPUTS + half * 16, out[p][r][half], bias,
                            y + (tile.first + r) * w.outputs);
}

template <class T>
using Multiply = void (*)(const QuantizedWeight&, const RowTile&, int64_t, const float*, T*);

template <int BITS, int PANELS, class T, int... R>
Multiply<T> multiply_for(int rows, std::integer_sequence<int, R...>) {
  static const Multiply<T> table[] = {multiply<BITS, R + 1, PANELS, T>...};
  return table[rows - 1];
}

// Multiplies panels [first, end) by all rows of a tile. If the tile has only a few rows, two panels are processed at a
// time, so that two streams of weights are read concurrently.
template <int BITS, class T>
void multiply_panels(const QuantizedWeight& w, const RowTile& tile, int64_t first, int64_t end, const float* bias,
                     T* y) {
  int64_t p = first;
  if (tile.rows <= FEW_ROWS)
    for (; p + 2 <= end; p += 2)
      multiply_for<BITS, 2, T>(tile.rows, std::make_integer_sequence<int, FEW_ROWS>())(w, tile, p, bias, y);
  for (; p < end; p++)
    multiply_for<BITS, 1, T>(tile.rows, std::make_integer_sequence<int, MAX_TILE_ROWS>())(w, tile, p, bias, y);
}

// Computes y. Called by all threads of a team.
template <int BITS, class T>
void multiply_rows(const T* x, int64_t rows, int64_t inputs, const QuantizedWeight& w, const float* bias, T* y,
                   QuantizedRows& quantized) {
  int64_t tiles = num_tiles(rows), groups = w.groups(), panels = (w.outputs + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS;
#pragma omp for schedule(static) collapse(2)
  for (int64_t t = 0; t < tiles; t++)
    for (int64_t g = 0; g < groups; g++) quantize(x, inputs, w, tile_of(t, rows, w, quantized), int(g));
#pragma omp for schedule(static)
  for (int64_t p = 0; p < panels; p += 2)
    for (int64_t t = 0; t < tiles; t++)
      multiply_panels<BITS>(w, tile_of(t, rows, w, quantized), p, std::min(p + 2, panels), bias, y);
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
