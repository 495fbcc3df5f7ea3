// Online softmax: keeps the running maximum and the running sum for scores that are processed block by block.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

struct OnlineSoftmax {
  float max = -INFINITY, sum = 0;

  // Computes the weights e^(score - max) of ``num`` scores, where ``num`` must be a multiple of 16 and masked scores
  // must be -infinity. Rescales ``values`` [size], the sum of weighted values, to the new maximum.
  template <class W>
  void update(const float* scores, int64_t num, W* weights, float* values, int64_t size) {
    float rescale = raise_max(scores, num, values, size);
    add_weights(scores, num, rescale, weights);
  }

  // The two steps of `update`. If there are several rows, calling the first step for all of them before the second one
  // is faster, because each step depends on the result of the previous one.
  float raise_max(const float* scores, int64_t num, float* values, int64_t size) {
    f32x16 block_max = broadcast(-INFINITY);
    for (int64_t k = 0; k < num; k += 16) block_max = maximum(load(scores + k), block_max);
    if (!any_greater(block_max, max)) return 1.0f;
    float new_max = horizontal_max(block_max), rescale = std::exp(max - new_max);
    max = new_max;
    for (int64_t k = 0; k < size; k += 16) store(values + k, load(values + k) * rescale);
    return rescale;
  }

  // Scores must not be masked unless IS_MASKED.
  template <bool IS_MASKED = true, class W>
  void add_weights(const float* scores, int64_t num, float rescale, W* weights) {
    f32x16 block_sum{};
    for (int64_t k = 0; k < num; k += 16) {
      f32x16 s = load(scores + k);
      f32x16 w = approx_exp_up_to_88(s - max);  // the difference is at most 0
      if (IS_MASKED) w = s == -INFINITY ? f32x16{} : w;
      store(weights + k, w);
      block_sum += w;
    }
    sum = sum * rescale + horizontal_sum(block_sum);
  }
};
