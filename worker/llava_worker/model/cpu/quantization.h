// Weights in 8 or 4 bits, and a row of x on its way to 8: what every product of them starts from and ends with.
#pragma once

#include <algorithm>

#include "simd.h"

constexpr int PANEL = 32;
constexpr int GROUP = 64;  // inputs that share a scale of 4-bit weights

struct Weights {
  const uint8_t* packed;
  const void* scales;  // 8 bits: fp32 [outputs]; 4 bits: bf16 [panels][groups][32]
  int64_t outputs, padded;  // inputs with padding, a multiple of 4
  int group;                // inputs that share a scale; the last group may be smaller
  int groups() const { return int((padded + group - 1) / group); }
};

inline f32x16 group_scale(const Weights& w, int64_t panel, int g, int half) {  // of 4-bit weights
  return load((const bf16*)w.scales + (panel * w.groups() + g) * PANEL + half * 16);
}

// Bytes and their scale, of the ``size`` inputs of a group; zeros up to ``padded``.
template <class T>
float quantize_group(const T* x, int64_t size, int64_t padded, int8_t* bytes) {
  f32x16 top{}, strange{};
  int64_t whole = size / 16 * 16;
  int rest = int(size - whole);
  auto look = [&](f32x16 v) {
    top = larger(absolute(v), top);
    strange += v - v;  // 0, but of an infinity or a NaN a NaN, which the scale then is
  };
  for (int64_t k = 0; k < whole; k += 16) look(load(x + k));
  if (rest) look(load_some(x + whole, rest));
  float most = largest(top);
  float factor = most > 0 ? 127.0f / most : 0.0f;
  auto put = [&](int64_t k, f32x16 v) { write(bytes + k, to_bytes(nearest(v * factor))); };
  for (int64_t k = 0; k < whole; k += 16) put(k, load(x + k));
  if (rest) put(whole, load_some(x + whole, rest));
  int64_t done = (size + 15) / 16 * 16;
  if (done < padded) std::memset(bytes + done, 0, padded - done);
  return most / 127.0f + sum(strange);
}

// A row of x in bytes, [padded]; ``stride`` apart its scale and its sum in each group.
template <class T>
void quantize_row(const T* x, int64_t size, const Weights& w, int8_t* bytes, float* scales, int32_t* sums, int stride) {
  for (int g = 0; g < w.groups(); g++) {
    int64_t first = int64_t(g) * w.group, padded = std::min<int64_t>(w.group, w.padded - first);
    int64_t inputs = std::max<int64_t>(0, std::min(padded, size - first));
    scales[g * stride] = quantize_group(x + first, inputs, padded, bytes + first);
    int32_t total = 0;
    for (int64_t k = 0; k < padded; k++) total += bytes[first + k];
    sums[g * stride] = total;
  }
}

// Sums of a row over all groups into its outputs, 16 from ``first`` on.
template <int BITS, class T>
INLINE void put_outputs(const Weights& w, int64_t first, f32x16 sums, const float* bias, T* row) {
  int count = int(std::min<int64_t>(16, w.outputs - first));
  if (count <= 0) return;
  f32x16 more = bias ? load_some(bias + first, count) : f32x16{};
  f32x16 scale = BITS == 8 ? load_some((const float*)w.scales + first, count) : same(1);
  f32x16 v = sums * scale + more;
  if (count == 16) store(row + first, v);
  else store_some(row + first, v, count);
}
