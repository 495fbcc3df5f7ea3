// Operations on the rows between matrix products: RMSNorm, RoPE and activations.
//
// All computations are in fp32. As in torch, intermediate results are rounded to the type of the tensor.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

template <class T>
void add_row(const T* x, int64_t size, T* to) {
  for_each_16(size, [&](int64_t k, int count) {
    store_up_to(to + k, load_up_to(x + k, count) + load_up_to(to + k, count), count);
  });
}

template <class T>
void rms_norm_row(const T* x, const T* weight, float eps, int64_t size, T* y) {
  f32x16 squares{};
  for_each_16(size, [&](int64_t k, int count) {
    f32x16 v = load_up_to(x + k, count);
    squares += v * v;
  });
  float factor = 1.0f / std::sqrt(horizontal_sum(squares) / float(size) + eps);
  for_each_16(size, [&](int64_t k, int count) {
    f32x16 v = round_to_type(x, load_up_to(x + k, count) * factor);
    store_up_to(y + k, v * load_up_to(weight + k, count), count);
  });
}

template <class T>
void rotate_head(const T* x, const T* cos, const T* sin, int64_t half, T* y) {
  for_each_16(half, [&](int64_t k, int count) {
    f32x16 left = load_up_to(x + k, count), right = load_up_to(x + half + k, count);
    f32x16 c = load_up_to(cos + k, count), s = load_up_to(sin + k, count);
    store_up_to(y + k, left * c - right * s, count);
    store_up_to(y + half + k, right * c + left * s, count);
  });
}

INLINE f32x16 sigmoid(f32x16 x) { return 1.0f / (1.0f + approx_exp(-x)); }

template <class T>
void silu_and_mul_row(const T* gate, const T* up, int64_t size, T* y) {
  for_each_16(size, [&](int64_t k, int count) {
    f32x16 v = load_up_to(gate + k, count);
    v = round_to_type(gate, v * sigmoid(v));
    store_up_to(y + k, v * load_up_to(up + k, count), count);
  });
}

template <class T>
void quick_gelu_row(const T* x, int64_t size, T* y) {
  for_each_16(size, [&](int64_t k, int count) {
    f32x16 v = load_up_to(x + k, count);
    store_up_to(y + k, v * sigmoid(1.702f * v), count);
  });
}
