// A softmax over scores that come some at a time: weights of what has been seen so far, and their sum.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

struct Softmax {
  float most = -INFINITY, total = 0;

  // ``num`` more scores, a multiple of 16, to weights e^(score - most); -infinity is what is not seen. ``values``
  // [size], weighted by what was the most before, follow.
  template <class W>
  void take(const float* scores, int64_t num, W* weights, float* values, int64_t size) {
    f32x16 top = same(-INFINITY);
    for (int64_t k = 0; k < num; k += 16) top = larger(load(scores + k), top);
    float now = std::max(most, largest(top));
    if (!(now > -INFINITY)) now = 0;  // none of these is seen
    f32x16 added{};
    for (int64_t k = 0; k < num; k += 16) {
      f32x16 s = load(scores + k);
      f32x16 w = s == -INFINITY ? f32x16{} : exponential(s - now);
      store(weights + k, w);
      added += w;
    }
    float shrink = std::exp(most - now);
    total = total * shrink + sum(added);
    most = now;
    if (shrink != 1.0f)
      for (int64_t k = 0; k < size; k += 16) store(values + k, load(values + k) * shrink);
  }
};
