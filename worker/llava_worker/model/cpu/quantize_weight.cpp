// Quantizes rows of W to the format described in quantized_linear.cpp.
//
// For 8 bits, there is one fp32 scale per row: the largest magnitude / 127. For 4 bits, there is one bf16 scale per
// group of inputs. The initial scale maps the value with the largest magnitude to -8, the end of the range that is
// farther from zero. The final scale is the least-squares optimum for the codes that result from the initial scale.
#include <algorithm>
#include <cmath>
#include <vector>

#include "quantization.h"

namespace {

template <class T>
float quantize_int8_row(const T* x, int64_t size, uint8_t* codes) {
  float scale = quantize_group(x, size, size, (int8_t*)codes);
  for (int64_t k = 0; k < size; k++) codes[k] ^= 0x80;  // plus 128
  return scale;
}

uint16_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float round_to_bf16(float x) {
  bf16 rounded{bf16_bits(x)};
  return to_float(&rounded);
}

// Returns the codes for 16 inputs. Codes are in the range from -8 to 7.
INLINE f32x16 int4_codes(f32x16 x, float scale) {
  float factor = scale != 0 ? 1.0f / scale : 0.0f;
  f32x16 codes = __builtin_convertvector(round_to_int(x * factor), f32x16);
  codes = codes > 7.0f ? broadcast(7.0f) : codes;
  return codes < -8.0f ? broadcast(-8.0f) : codes;
}

// Returns the value with the largest magnitude in the group. If there are several, returns the first one.
INLINE float largest_magnitude(const float* x) {
  f32x16 lane_max{};
  for (int k = 0; k < INT4_GROUP; k += 16) lane_max = maximum(absolute(load(x + k)), lane_max);
  float max_abs = horizontal_max(lane_max);
  int k = 0;
  while (k < INT4_GROUP - 1 && std::fabs(x[k]) != max_abs) k++;
  return x[k];
}

float quantize_int4_group(const float* x, uint8_t* codes) {
  typedef double f64x16 __attribute__((vector_size(128)));
  float scale = round_to_bf16(largest_magnitude(x) / -8.0f);
  f64x16 products{}, squares{};
  for (int k = 0; k < INT4_GROUP; k += 16) {
    f64x16 wide = __builtin_convertvector(int4_codes(load(x + k), scale), f64x16);
    products += wide * __builtin_convertvector(load(x + k), f64x16);
    squares += wide * wide;
  }
  double product = 0, square = 0;
  for (int i = 0; i < 16; i++) product += products[i], square += squares[i];
  if (square > 0) scale = round_to_bf16(float(product / square));
  for (int k = 0; k < INT4_GROUP; k += 16)
    write(codes + k, to_int8(round_to_int(int4_codes(load(x + k), scale)) + 8));
  return scale;
}

void store_int8(const uint8_t* codes, int64_t padded, int lane, uint8_t* panel) {
  for (int64_t k = 0; k < padded; k += 4) std::memcpy(panel + k * PANEL_OUTPUTS + lane * 4, codes + k, 4);
}

void store_int4(const uint8_t* codes, int64_t padded, int lane, uint8_t* panel) {
  int shift = lane < 16 ? 0 : 4;
  uint32_t mask = 0x0f0f0f0fu << shift;
  for (int64_t k = 0; k < padded; k += 4) {
    uint8_t* target = panel + k * 16 + lane % 16 * 4;
    uint32_t both = read<uint32_t>(target), new_codes = read<uint32_t>(codes + k);
    write(target, (both & ~mask) | (new_codes << shift & mask));
  }
}

template <class T>
void pack_rows(int bits, const T* x, int64_t rows, int64_t inputs, int64_t first, uint8_t* packed, void* scales,
               int64_t padded, int threads) {
  int64_t end = first + rows, groups = padded / INT4_GROUP;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t panel = first / PANEL_OUTPUTS; panel < (end + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS; panel++) {
    std::vector<uint8_t> codes(padded + 16);
    std::vector<float> wide(padded);
    uint8_t* target = packed + panel * padded * PANEL_OUTPUTS * bits / 8;
    for (int64_t n = std::max(first, panel * PANEL_OUTPUTS); n < std::min(end, (panel + 1) * PANEL_OUTPUTS); n++) {
      const T* row = x + (n - first) * inputs;
      int lane = int(n - panel * PANEL_OUTPUTS);
      if (bits == 8) {
        ((float*)scales)[n] = quantize_int8_row(row, inputs, codes.data());
        store_int8(codes.data(), padded, lane, target);
        continue;
      }
      for (int64_t k = 0; k < inputs; k++) wide[k] = to_float(row + k);
      for (int64_t g = 0; g < groups; g++) {
        float scale = quantize_int4_group(&wide[g * INT4_GROUP], &codes[g * INT4_GROUP]);
        ((bf16*)scales)[(panel * groups + g) * PANEL_OUTPUTS + lane].bits = bf16_bits(scale);
      }
      store_int4(codes.data(), padded, lane, target);
    }
  }
}

}  // namespace

// Packs x, which contains rows [first, first + rows) of W: [rows][inputs] in bf16 or fp32.
extern "C" void pack_weight(int bits, int is_bf16, const void* x, int64_t rows, int64_t inputs, int64_t first,
                            uint8_t* packed, void* scales, int64_t padded, int threads) {
  if (is_bf16) pack_rows(bits, (const bf16*)x, rows, inputs, first, packed, scales, padded, threads);
  else pack_rows(bits, (const float*)x, rows, inputs, first, packed, scales, padded, threads);
}
