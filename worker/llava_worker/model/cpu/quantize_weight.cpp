// Quantizes rows of W to the format described in quantized_linear.cpp.
//
// For 8 bits, there is one fp32 scale per row: the largest magnitude / 127. For 4 and 5 bits, there is one bf16 scale
// per group of inputs. The initial scale maps the weight with the largest magnitude to the first value of the codebook,
// which has the largest magnitude. The final scale is the least-squares optimum for the codes that result from the
// initial scale.
#include <algorithm>
#include <cmath>
#include <vector>

#include "quantization.h"

namespace {

template <class T>
float quantize_int8_row(const T* x, int64_t size, uint8_t* codes) {
  float scale = quantize_group(x, size, size, (int8_t*)codes).scale;
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

// The values of the codes, in ascending order, and the midpoints between adjacent values.
template <int BITS>
struct Codebook {
  static constexpr int SIZE = 1 << BITS;
  float values[SIZE], midpoints[SIZE - 1];
  explicit Codebook(const int8_t* from) {
    for (int k = 0; k < SIZE; k++) values[k] = from[k];
    for (int k = 0; k < SIZE - 1; k++) midpoints[k] = (values[k] + values[k + 1]) / 2;
  }
  INLINE f32x16 nearest_values(f32x16 x) const {
    f32x16 nearest = broadcast(values[0]);
    for (int k = 0; k < SIZE - 1; k++) nearest = x > midpoints[k] ? broadcast(values[k + 1]) : nearest;
    return nearest;
  }
  INLINE i32x16 nearest_codes(f32x16 x) const {
    i32x16 codes{};
    for (int k = 0; k < SIZE - 1; k++) codes -= x > midpoints[k];  // a comparison yields -1 if it is true
    return codes;
  }
};

// Returns the weight with the largest magnitude in the group. If there are several, returns the first one.
INLINE float largest_magnitude(const float* x) {
  f32x16 lane_max{};
  for (int k = 0; k < WEIGHT_GROUP; k += 16) lane_max = maximum(absolute(load(x + k)), lane_max);
  float max_abs = horizontal_max(lane_max);
  int k = 0;
  while (k < WEIGHT_GROUP - 1 && std::fabs(x[k]) != max_abs) k++;
  return x[k];
}

// Quantizes a group of weights to codes, and returns the scale.
template <int BITS>
float encode_group(const float* x, const Codebook<BITS>& codebook, uint8_t* codes) {
  typedef double f64x16 __attribute__((vector_size(128)));
  auto reciprocal = [](float scale) { return scale != 0 ? 1.0f / scale : 0.0f; };
  float scale = round_to_bf16(largest_magnitude(x) / codebook.values[0]), factor = reciprocal(scale);
  f64x16 products{}, squares{};
  for (int k = 0; k < WEIGHT_GROUP; k += 16) {
    f64x16 values = __builtin_convertvector(codebook.nearest_values(load(x + k) * factor), f64x16);
    products += values * __builtin_convertvector(load(x + k), f64x16);
    squares += values * values;
  }
  double product = 0, square = 0;
  for (int i = 0; i < 16; i++) product += products[i], square += squares[i];
  scale = round_to_bf16(float(product / square));  // no value of the codebook is 0
  factor = reciprocal(scale);
  for (int k = 0; k < WEIGHT_GROUP; k += 16)
    write(codes + k, to_int8(codebook.nearest_codes(load(x + k) * factor)));
  return scale;
}

void store_int8(const uint8_t* codes, int64_t padded, int lane, uint8_t* panel) {
  for (int64_t k = 0; k < padded; k += 4) std::memcpy(panel + k * PANEL_OUTPUTS + lane * 4, codes + k, 4);
}

// Stores the codes of one output, a lane of the panel, in the layout described in quantized_linear.cpp.
template <int BITS>
void store_codes(const uint8_t* codes, int64_t padded, int lane, uint8_t* panel) {
  int shift = lane < 16 ? 0 : 4;
  uint32_t mask = 0x0f0f0f0fu << shift;
  for (int64_t k = 0; k < padded; k += 4) {
    uint8_t* group = panel + k / WEIGHT_GROUP * WEIGHT_GROUP * PANEL_OUTPUTS * BITS / 8;
    int64_t step = k % WEIGHT_GROUP / 4;
    uint32_t new_codes = read<uint32_t>(codes + k);
    uint8_t* nibbles = group + step * 64 + lane % 16 * 4;
    write(nibbles, (read<uint32_t>(nibbles) & ~mask) | (new_codes << shift & mask));
    if (BITS == 5) {  // the fifth bits of two outputs share a byte
      uint8_t* fifth_bits = group + NIBBLE_BYTES + step * 16 + lane / 2;
      int first = lane % 2 * 4;
      for (int i = 0; i < 4; i++)
        *fifth_bits = uint8_t((*fifth_bits & ~(1 << (first + i))) | (codes[k + i] >> 4) << (first + i));
    }
  }
}

template <class T>
void pack_int8(const T* row, int64_t inputs, int64_t padded, int lane, uint8_t* panel, float* scale) {
  std::vector<uint8_t> codes(padded + 16);
  *scale = quantize_int8_row(row, inputs, codes.data());
  store_int8(codes.data(), padded, lane, panel);
}

// Packs a row of W with a codebook. ``scales`` [groups][32] are the scales of the panel.
template <int BITS, class T>
void pack_with_codebook(const T* row, int64_t inputs, int64_t padded, int lane, const Codebook<BITS>& codebook,
                        uint8_t* panel, bf16* scales) {
  std::vector<uint8_t> codes(padded + 16);
  std::vector<float> wide(padded);
  for (int64_t k = 0; k < inputs; k++) wide[k] = to_float(row + k);
  for (int64_t k = 0; k < padded; k += WEIGHT_GROUP) {
    float scale = encode_group(&wide[k], codebook, &codes[k]);
    scales[k / WEIGHT_GROUP * PANEL_OUTPUTS + lane].bits = bf16_bits(scale);
  }
  store_codes<BITS>(codes.data(), padded, lane, panel);
}

template <int BITS, class T>
void pack_rows(const T* x, int64_t rows, int64_t inputs, int64_t first, uint8_t* packed, void* scales,
               const int8_t* codebook, int64_t padded, int threads) {
  int64_t end = first + rows, groups = padded / WEIGHT_GROUP;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t panel = first / PANEL_OUTPUTS; panel < (end + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS; panel++) {
    uint8_t* target = packed + panel * padded * PANEL_OUTPUTS * BITS / 8;
    for (int64_t n = std::max(first, panel * PANEL_OUTPUTS); n < std::min(end, (panel + 1) * PANEL_OUTPUTS); n++) {
      const T* row = x + (n - first) * inputs;
      int lane = int(n - panel * PANEL_OUTPUTS);
      if constexpr (BITS == 8) {
        pack_int8(row, inputs, padded, lane, target, (float*)scales + n);
      } else {
        bf16* panel_scales = (bf16*)scales + panel * groups * PANEL_OUTPUTS;
        pack_with_codebook(row, inputs, padded, lane, Codebook<BITS>(codebook), target, panel_scales);
      }
    }
  }
}

}  // namespace

// Packs x, which contains rows [first, first + rows) of W: [rows][inputs] in bf16 or fp32.
extern "C" void pack_weight(int bits, int is_bf16, const void* x, int64_t rows, int64_t inputs, int64_t first,
                            uint8_t* packed, void* scales, const int8_t* codebook, int64_t padded, int threads) {
  auto pack = [&](auto* typed_x) {
    if (bits == 8) pack_rows<8>(typed_x, rows, inputs, first, packed, scales, codebook, padded, threads);
    else if (bits == 5) pack_rows<5>(typed_x, rows, inputs, first, packed, scales, codebook, padded, threads);
    else pack_rows<4>(typed_x, rows, inputs, first, packed, scales, codebook, padded, threads);
  };
  if (is_bf16) pack((const bf16*)x);
  else pack((const float*)x);
}
