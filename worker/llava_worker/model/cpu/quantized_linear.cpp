// y = x W^T + b with W in 8 or 4 bits and x rounded to 8 bits; sums within a group are exact 32-bit integers.
//
// A group is some inputs of one row, which have a scale of their own: a number far larger than its row's others
// costs the precision of its group and of no more.
//
// Weights lie in panels of 32 outputs, and within a panel four inputs of each output after another, which is
// what the dot-product instruction eats: [outputs / 32][inputs / 4][32][4] bytes. They are unsigned, because the
// instruction wants one side so: what the offset adds is the row's sum times it, taken off beforehand.
// Four-bit weights put output i (low half) and output 16 + i (high half) of a panel into one byte.
//
// x is quantised into tiles of at most TILE rows, [inputs / 4][rows][4] bytes. A panel stays in the second-level
// cache while every tile passes over it, so that weights come from memory once whatever the number of rows.
#include <algorithm>
#include <utility>
#include <vector>

#include "quantization.h"
#include "amx.h"

namespace {

#ifdef __AVX512F__
constexpr int TILE = 12, FEW = 4;  // 24 sums, 2 weights and an input in 32 registers
#else
constexpr int TILE = 3, FEW = 1;
#endif
constexpr int64_t AHEAD = 4096;

struct Tile {
  int first, rows;
  int8_t* inputs;   // [padded / 4][rows][4]
  int32_t* sums;    // [groups][rows]
  float* scales;    // [groups][rows]
};

template <class T>
void quantize(const T* x, int64_t size, const Weights& w, const Tile& tile, std::vector<int8_t>& row) {
  row.resize(w.padded + 16);
  for (int r = 0; r < tile.rows; r++) {
    quantize_row(x + (tile.first + r) * size, size, w, row.data(), tile.scales + r, tile.sums + r, tile.rows);
    for (int64_t k = 0; k < w.padded; k += 4) std::memcpy(tile.inputs + k * tile.rows + r * 4, &row[k], 4);
  }
}

// --- products ---

// Prefetched into the second-level cache: the machine's own prefetching ends with each page, and what goes into
// the first takes one of few places there until it has come.
INLINE void prefetch(const uint8_t* from) { __builtin_prefetch(from + AHEAD, 0, 2); }

template <int BITS>
INLINE void weights_at(const uint8_t* panel, int64_t step, u8x64& low, u8x64& high) {
  if constexpr (BITS == 8) {
    low = read<u8x64>(panel + step * 128);
    high = read<u8x64>(panel + step * 128 + 64);
    prefetch(panel + step * 128);
    prefetch(panel + step * 128 + 64);
  } else {
    u8x64 both = read<u8x64>(panel + step * 64);
    low = both & 15;
    high = both >> 4;
    prefetch(panel + step * 64);
  }
}

template <int BITS, int ROWS, int PANELS, class T>
void multiply(const Weights& w, const Tile& tile, int64_t panel, const float* bias, T* y) {
  constexpr int ZERO = BITS == 8 ? 128 : 8;
  const int64_t bytes = w.padded * PANEL * BITS / 8;
  const uint8_t* packed = w.packed + panel * bytes;
  const int8_t* inputs = tile.inputs;
  f32x16 out[PANELS][ROWS][2] = {};
  int64_t step = 0;
  for (int g = 0; g < w.groups(); g++) {
    i32x16 acc[PANELS][ROWS][2];
    for (int p = 0; p < PANELS; p++)
      for (int r = 0; r < ROWS; r++) acc[p][r][0] = acc[p][r][1] = i32x16{} - ZERO * tile.sums[g * ROWS + r];
    for (int64_t end = std::min(step + w.group / 4, w.padded / 4); step < end; step++)
      for (int p = 0; p < PANELS; p++) {
        u8x64 low, high;
        weights_at<BITS>(packed + p * bytes, step, low, high);
        for (int r = 0; r < ROWS; r++) {
          int32_t four = read<int32_t>(inputs + (step * ROWS + r) * 4);
          acc[p][r][0] = dot4(acc[p][r][0], low, four);
          acc[p][r][1] = dot4(acc[p][r][1], high, four);
        }
      }
    for (int p = 0; p < PANELS; p++)
      for (int half = 0; half < 2; half++) {
        f32x16 scale = BITS == 4 ? group_scale(w, panel + p, g, half) : f32x16{};
        for (int r = 0; r < ROWS; r++) {
          f32x16 whole = __builtin_convertvector(acc[p][r][half], f32x16);
          float input_scale = tile.scales[g * ROWS + r];
          out[p][r][half] += BITS == 4 ? whole * (scale * input_scale) : whole * input_scale;
        }
      }
  }
  for (int p = 0; p < PANELS; p++)
    for (int half = 0; half < 2; half++)
      for (int r = 0; r < ROWS; r++)
        put_outputs<BITS>(w, (panel + p) * PANEL + half * 16, out[p][r][half], bias, y + (tile.first + r) * w.outputs);
}

template <class T>
using Multiply = void (*)(const Weights&, const Tile&, int64_t, const float*, T*);

template <int BITS, int PANELS, class T, int... R>
Multiply<T> multiply_for(int rows, std::integer_sequence<int, R...>) {
  static const Multiply<T> table[] = {multiply<BITS, R + 1, PANELS, T>...};
  return table[rows - 1];
}

// Panels [first, end) for all rows; two at a time where they are few, so that two streams of weights are under way.
template <int BITS, class T>
void multiply_panels(const Weights& w, const Tile& tile, int64_t first, int64_t end, const float* bias, T* y) {
  int64_t p = first;
  if (tile.rows <= FEW)
    for (; p + 2 <= end; p += 2)
      multiply_for<BITS, 2, T>(tile.rows, std::make_integer_sequence<int, FEW>())(w, tile, p, bias, y);
  for (; p < end; p++)
    multiply_for<BITS, 1, T>(tile.rows, std::make_integer_sequence<int, TILE>())(w, tile, p, bias, y);
}

template <int BITS, class T>
void apply(const T* x, int64_t rows, int64_t inputs, const Weights& w, const float* bias, T* y, int threads) {
#ifdef __AMX_INT8__
  if (rows >= MANY_ROWS && may_use_tiles()) return apply_in_tiles<BITS>(x, rows, inputs, w, bias, y, threads);
#endif
  static thread_local std::vector<int8_t> bytes;
  static thread_local std::vector<int32_t> sums;
  static thread_local std::vector<float> scales;
  bytes.resize(rows * w.padded);
  sums.resize(rows * w.groups());
  scales.resize(rows * w.groups());
  int count = int((rows + TILE - 1) / TILE);
  std::vector<Tile> tiles(count);
  for (int t = 0; t < count; t++) {
    int64_t first = rows * t / count, last = rows * (t + 1) / count;
    tiles[t] = {int(first), int(last - first), bytes.data() + first * w.padded,
                sums.data() + first * w.groups(), scales.data() + first * w.groups()};
  }
  int64_t panels = (w.outputs + PANEL - 1) / PANEL;
#pragma omp parallel num_threads(threads)
  {
    std::vector<int8_t> row;
#pragma omp for schedule(static)
    for (int t = 0; t < count; t++) quantize(x, inputs, w, tiles[t], row);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < panels; p += 2)
      for (const Tile& tile : tiles) multiply_panels<BITS>(w, tile, p, std::min(p + 2, panels), bias, y);
  }
}

}  // namespace

// x [rows][inputs] and y [rows][outputs], both bf16 or both fp32; bias fp32 [outputs] or null.
extern "C" void quantized_linear(int bits, int is_bf16, const void* x, int64_t rows, int64_t inputs, const uint8_t* packed,
                       const void* scales, int64_t outputs, int64_t padded, int group, const float* bias, void* y,
                       int threads) {
  Weights w{packed, scales, outputs, padded, group};
  if (bits == 8 && is_bf16) apply<8>((const bf16*)x, rows, inputs, w, bias, (bf16*)y, threads);
  else if (bits == 8) apply<8>((const float*)x, rows, inputs, w, bias, (float*)y, threads);
  else if (is_bf16) apply<4>((const bf16*)x, rows, inputs, w, bias, (bf16*)y, threads);
  else apply<4>((const float*)x, rows, inputs, w, bias, (float*)y, threads);
}
