// Rows of W into the format that quantized_linear.cpp describes: each is rounded and put into its place as it arrives.
//
// 8 bits: one scale a row, its largest magnitude over 127. 4 bits: one scale a group of inputs, kept in bf16.
// The largest magnitude of a group becomes -8, the end that has one step more; then, with the whole numbers
// found so, the scale that fits them best in the sense of least squares takes its place, once.
#include <algorithm>
#include <cmath>
#include <vector>

#include "quantization.h"

namespace {

template <class T>
float scale_row(const T* x, int64_t size, uint8_t* bytes) {
  float scale = quantize_group(x, size, size, (int8_t*)bytes);
  for (int64_t k = 0; k < size; k++) bytes[k] ^= 0x80;  // plus 128
  return scale;
}

uint16_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float kept(float x) {
  bf16 short_form{bits_of(x)};
  return one(&short_form);
}

// Whole numbers of 16 inputs.
INLINE f32x16 round_some(f32x16 x, float scale) {
  float factor = scale != 0 ? 1.0f / scale : 0.0f;
  f32x16 whole = __builtin_convertvector(nearest(x * factor), f32x16);
  whole = whole > 7.0f ? same(7.0f) : whole;
  return whole < -8.0f ? same(-8.0f) : whole;
}

// The first of those whose magnitude is the largest; 64 inputs, as everywhere below.
INLINE float end_of(const float* x) {
  f32x16 top{};
  for (int k = 0; k < GROUP; k += 16) top = larger(absolute(load(x + k)), top);
  float most = largest(top);
  int k = 0;
  while (k < GROUP - 1 && std::fabs(x[k]) != most) k++;
  return x[k];
}

float scale_group(const float* x, uint8_t* bytes) {
  typedef double f64x16 __attribute__((vector_size(128)));
  float scale = kept(end_of(x) / -8.0f);
  f64x16 products{}, squares{};
  for (int k = 0; k < GROUP; k += 16) {
    f64x16 whole = __builtin_convertvector(round_some(load(x + k), scale), f64x16);
    products += whole * __builtin_convertvector(load(x + k), f64x16);
    squares += whole * whole;
  }
  double product = 0, square = 0;
  for (int i = 0; i < 16; i++) product += products[i], square += squares[i];
  if (square > 0) scale = kept(float(product / square));
  for (int k = 0; k < GROUP; k += 16)
    write(bytes + k, to_bytes(nearest(round_some(load(x + k), scale)) + 8));
  return scale;
}

void place8(const uint8_t* bytes, int64_t padded, int lane, uint8_t* panel) {
  for (int64_t k = 0; k < padded; k += 4) std::memcpy(panel + k * PANEL + lane * 4, bytes + k, 4);
}

void place4(const uint8_t* bytes, int64_t padded, int lane, uint8_t* panel) {
  int shift = lane < 16 ? 0 : 4;
  uint32_t mine = 0x0f0f0f0fu << shift;
  for (int64_t k = 0; k < padded; k += 4) {
    uint8_t* to = panel + k * 16 + lane % 16 * 4;
    uint32_t both = read<uint32_t>(to), four = read<uint32_t>(bytes + k);
    write(to, (both & ~mine) | (four << shift & mine));
  }
}

template <class T>
void pack_rows(int bits, const T* x, int64_t rows, int64_t inputs, int64_t first, uint8_t* packed, void* scales,
               int64_t padded, int threads) {
  int64_t end = first + rows, groups = padded / GROUP;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t panel = first / PANEL; panel < (end + PANEL - 1) / PANEL; panel++) {
    std::vector<uint8_t> bytes(padded + 16);
    std::vector<float> wide(padded);
    uint8_t* to = packed + panel * padded * PANEL * bits / 8;
    for (int64_t n = std::max(first, panel * PANEL); n < std::min(end, (panel + 1) * PANEL); n++) {
      const T* row = x + (n - first) * inputs;
      int lane = int(n - panel * PANEL);
      if (bits == 8) {
        ((float*)scales)[n] = scale_row(row, inputs, bytes.data());
        place8(bytes.data(), padded, lane, to);
        continue;
      }
      for (int64_t k = 0; k < inputs; k++) wide[k] = one(row + k);
      for (int64_t g = 0; g < groups; g++) {
        float scale = scale_group(&wide[g * GROUP], &bytes[g * GROUP]);
        ((bf16*)scales)[(panel * groups + g) * PANEL + lane].bits = bits_of(scale);
      }
      place4(bytes.data(), padded, lane, to);
    }
  }
}

}  // namespace

// Rows [first, first + rows) of W, [rows][inputs] in bf16 or fp32.
extern "C" void pack_weight(int bits, int is_bf16, const void* x, int64_t rows, int64_t inputs, int64_t first,
                     uint8_t* packed, void* scales, int64_t padded, int threads) {
  if (is_bf16) pack_rows(bits, (const bf16*)x, rows, inputs, first, packed, scales, padded, threads);
  else pack_rows(bits, (const float*)x, rows, inputs, first, packed, scales, padded, threads);
}
