// Rows of W into the format that linear.cpp describes: each is rounded and put into its place as it arrives.
//
// 8 bits: one scale a row, its largest magnitude over 127. 4 bits: one scale a group of inputs, kept in bf16.
// The largest magnitude of a group becomes -8, the end that has one step more; then, with the whole numbers
// found so, the scale that fits them best in the sense of least squares takes its place, once.
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int PANEL = 32;

void scale_row(const float* x, int64_t size, float* scale, uint8_t* bytes) {
  float most = 0;
  for (int64_t k = 0; k < size; k++) most = std::max(most, std::fabs(x[k]));
  *scale = most / 127.0f;
  float factor = most > 0 ? 127.0f / most : 0.0f;
  for (int64_t k = 0; k < size; k++) bytes[k] = uint8_t(int(std::nearbyint(x[k] * factor)) + 128);
}

void round_group(const float* x, int size, float scale, float* whole) {
  float factor = scale != 0 ? 1.0f / scale : 0.0f;
  for (int k = 0; k < size; k++) whole[k] = std::min(7.0f, std::max(-8.0f, std::nearbyint(x[k] * factor)));
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

float scale_group(const float* x, int size, uint8_t* bytes) {
  float end = 0, whole[256];
  for (int k = 0; k < size; k++) end = std::fabs(x[k]) > std::fabs(end) ? x[k] : end;
  float scale = kept(end / -8.0f);
  round_group(x, size, scale, whole);
  double product = 0, square = 0;
  for (int k = 0; k < size; k++) product += double(x[k]) * whole[k], square += double(whole[k]) * whole[k];
  if (square > 0) scale = kept(float(product / square));
  round_group(x, size, scale, whole);
  for (int k = 0; k < size; k++) bytes[k] = uint8_t(int(whole[k]) + 8);
  return scale;
}

void place8(const uint8_t* bytes, int64_t padded, int lane, uint8_t* panel) {
  for (int64_t k = 0; k < padded; k += 4) std::memcpy(panel + k * PANEL + lane * 4, bytes + k, 4);
}

void place4(const uint8_t* bytes, int64_t padded, int lane, uint8_t* panel) {
  for (int64_t k = 0; k < padded; k++) {
    uint8_t& both = panel[k / 4 * 64 + lane % 16 * 4 + k % 4];
    both = lane < 16 ? (both & 0xf0) | bytes[k] : (both & 0x0f) | bytes[k] << 4;
  }
}

}  // namespace

// Rows [first, first + rows) of W, fp32 [rows][inputs].
extern "C" void pack(int bits, const float* x, int64_t rows, int64_t inputs, int64_t first, uint8_t* packed,
                     void* scales, int64_t padded, int group, int threads) {
  int64_t end = first + rows, groups = padded / group;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t panel = first / PANEL; panel < (end + PANEL - 1) / PANEL; panel++) {
    std::vector<uint8_t> bytes(padded);
    std::vector<float> padded_row(padded);
    uint8_t* to = packed + panel * padded * PANEL * bits / 8;
    for (int64_t n = std::max(first, panel * PANEL); n < std::min(end, (panel + 1) * PANEL); n++) {
      const float* row = x + (n - first) * inputs;
      int lane = int(n - panel * PANEL);
      if (bits == 8) {
        scale_row(row, inputs, (float*)scales + n, bytes.data());
        place8(bytes.data(), padded, lane, to);
        continue;
      }
      std::copy(row, row + inputs, padded_row.begin());
      for (int64_t g = 0; g < groups; g++) {
        float scale = scale_group(&padded_row[g * group], group, &bytes[g * group]);
        ((bf16*)scales)[(panel * groups + g) * PANEL + lane].bits = bits_of(scale);
      }
      place4(bytes.data(), padded, lane, to);
    }
  }
}
