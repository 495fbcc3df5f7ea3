// Uses AMX tile registers to compute the matrix products of quantized_linear.cpp for many rows. This is several times
// faster than using SIMD vectors: four instructions multiply 32 rows by 32 outputs over 64 inputs.
//
// Panels are already in the layout that the AMX instruction requires. Integer sums are exact, so results are bitwise
// identical to those of the vector code. The integer sums of each group are scaled and accumulated in a buffer that
// fits in the L1 cache.
//
// x is stored tile by tile. If it were stored row by row, the length of a row would often be a multiple of 2 KiB, and
// sixteen such rows would map to only two sets of the L1 cache.
#pragma once
#ifdef __AMX_INT8__

#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "quantization.h"

constexpr int MIN_AMX_ROWS = 16;  // with fewer rows, most of a tile would be padding

namespace tiles {

constexpr int SIDE = 32;    // rows and outputs of a square of 2x2 tiles
constexpr int DEPTH = 64;   // inputs per tile
constexpr int SQUARES = 2;  // squares per iteration, along the rows
constexpr int PANELS = 2;   // panels per iteration

// x, quantized to 8 bits and padded with rows of zeros to fill whole squares.
struct Inputs {
  const int8_t* codes;    // [rows / 16][padded / 64][16][64]
  const float* scales;    // [rows][groups]
  const int32_t* offsets; // [rows][groups]
  int64_t rows, padded;
  int groups;
};

struct alignas(64) Config {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Computes the products [32][32] of 32 rows of x and a panel of weights [inputs / 4][32][4]. x consists of tiles of 16
// rows. The offset from the tiles of the first 16 rows to those of the next 16 rows is 16 * ``next`` bytes.
INLINE void multiply_square(const int8_t* x, int64_t next, const uint8_t* weights, int64_t inputs, int32_t* products) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < inputs; k += DEPTH) {
    const uint8_t* w = weights + k * PANEL_OUTPUTS;
    _tile_loadd(4, x + k * 16, 64);
    _tile_loadd(5, x + (k + next) * 16, 64);
    _tile_loadd(6, w, 4 * PANEL_OUTPUTS);
    _tile_loadd(7, w + 64, 4 * PANEL_OUTPUTS);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, products, 4 * SIDE);
  _tile_stored(1, products + 16, 4 * SIDE);
  _tile_stored(2, products + 16 * SIDE, 4 * SIDE);
  _tile_stored(3, products + 16 * SIDE + 16, 4 * SIDE);
}

// Scales the products of a group and adds them to out [32][32].
template <int BITS>
INLINE void add_group(const QuantizedWeight& w, int64_t panel, int g, const Inputs& x, int64_t row,
                      const int32_t* products, float* out) {
  f32x16 scale[2] = {};
  if (BITS != 8) scale[0] = group_scale(w, x.groups, panel, g, 0), scale[1] = group_scale(w, x.groups, panel, g, 1);
  for (int r = 0; r < SIDE; r++) {
    int64_t group = (row + r) * x.groups + g;
    float input_scale = x.scales[group];
    int32_t offset = x.offsets[group];
    for (int half = 0; half < 2; half++) {
      int index = r * SIDE + half * 16;
      f32x16 sum = __builtin_convertvector(read<i32x16>(products + index) + offset, f32x16);
      f32x16 updated = load(out + index);
      updated += BITS == 8 ? sum * input_scale : sum * (scale[half] * input_scale);
      store(out + index, updated);
    }
  }
}

template <int BITS, class T>
void multiply_panels(const QuantizedWeight& w, const Inputs& x, int64_t first, int64_t count, uint8_t* buffer,
                     const float* bias, T* y, int64_t num_rows) {
  alignas(64) static thread_local float out[PANELS][SQUARES][SIDE * SIDE];
  alignas(64) static thread_local int32_t products[SIDE * SIDE];
  const uint8_t* weights[PANELS];
  for (int64_t p = 0; p < count; p++)
    weights[p] = BITS == 8 ? w.packed + (first + p) * w.padded * PANEL_OUTPUTS : buffer + p * w.padded * PANEL_OUTPUTS;
  if (BITS != 8) {
    const ValueTables tables = value_tables<BITS>(w);
    for (int64_t p = 0; p < count; p++)
      unpack_panel<BITS>(w, tables, first + p, buffer + p * w.padded * PANEL_OUTPUTS);
  }
  for (int64_t row = 0; row < x.rows; row += SQUARES * SIDE) {
    int64_t squares = std::min<int64_t>(SQUARES, (x.rows - row) / SIDE);
    std::memset(out, 0, sizeof out);
    for (int g = 0; g < x.groups; g++) {
      int64_t k = int64_t(g) * w.group_size, inputs = std::min<int64_t>(w.group_size, w.padded - k);
      for (int64_t p = 0; p < count; p++)
        for (int64_t s = 0; s < squares; s++) {
          int64_t square_row = row + s * SIDE;
          const int8_t* codes = x.codes + square_row * x.padded + k * 16;
          multiply_square(codes, x.padded, weights[p] + k * PANEL_OUTPUTS, inputs, products);
          add_group<BITS>(w, first + p, g, x, square_row, products, out[p][s]);
        }
    }
    for (int64_t p = 0; p < count; p++)
      for (int half = 0; half < 2; half++) {
        OutputHalf<BITS != 8> outputs(w, bias, first + p, half);
        for (int64_t r = row; r < std::min(row + squares * SIDE, num_rows); r++) {
          const float* sums = out[p][(r - row) / SIDE] + (r - row) % SIDE * SIDE + half * 16;
          outputs.store_row(load(sums), y + r * w.outputs);
        }
      }
  }
}

}  // namespace tiles

// Asks Linux for permission to use tile registers, which is required (Documentation/arch/x86/xstate.rst).
inline bool is_amx_permitted() {
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return granted;
}

template <int BITS, class T>
void quantized_linear_amx(const T* x, int64_t rows, int64_t inputs, const QuantizedWeight& w, const float* bias, T* y,
                          int threads) {
  using namespace tiles;
  static thread_local std::vector<int8_t> codes;
  static thread_local std::vector<int32_t> offsets;
  static thread_local std::vector<float> scales;
  int64_t padded_rows = (rows + SIDE - 1) / SIDE * SIDE, panels = w.panels();
  codes.assign(padded_rows * w.padded, 0);
  offsets.assign(padded_rows * w.groups(), 0);
  scales.assign(padded_rows * w.groups(), 0);
  Inputs in{codes.data(), scales.data(), offsets.data(), padded_rows, w.padded, w.groups()};
  int8_t* all_codes = codes.data();
  int32_t* all_offsets = offsets.data();
  float* all_scales = scales.data();
#pragma omp parallel num_threads(threads)
  {
    static thread_local std::vector<uint8_t> buffer;
    static thread_local std::vector<int8_t> row;
    row.resize(w.padded);
    if (BITS != 8) buffer.resize(PANELS * w.padded * PANEL_OUTPUTS);
    static const Config config;
    _tile_loadconfig(&config);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      quantize_row(x + r * inputs, inputs, w, row.data(), all_scales + r * w.groups(), all_offsets + r * w.groups());
      int8_t* to = all_codes + r / 16 * 16 * w.padded + r % 16 * DEPTH;
      for (int64_t k = 0; k < w.padded; k += DEPTH) std::memcpy(to + k * 16, &row[k], DEPTH);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t p = 0; p < panels; p += PANELS)
      multiply_panels<BITS>(w, in, p, std::min<int64_t>(PANELS, panels - p), buffer.data(), bias, y, rows);
    _tile_release();
  }
}

#endif
