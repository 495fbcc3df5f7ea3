// Computes y = x W^T + b in bf16 for a few rows of x. W has the same layout as in the checkpoint: [outputs][inputs].
//
// Kernels from math libraries are optimized for many rows. For one row, they reach only half of the memory bandwidth.
// This kernel reads W sequentially and only once. While a weight is in a register, it is multiplied by up to ROWS rows.
#include <algorithm>

#include "team_kernels.h"

#ifdef __AVX512BF16__
namespace {

constexpr int ROWS = 6, OUTPUTS = 4;  // 24 of 32 registers hold accumulators

INLINE __m512bh load_masked(const bf16* from, __mmask32 mask) { return (__m512bh)_mm512_maskz_loadu_epi16(mask, from); }

template <int R, int O>
void dot(const bf16* x, const bf16* w, int64_t inputs, const bf16* bias, bf16* y, int64_t outputs) {
  __m512 acc[O][R];
  for (int o = 0; o < O; o++)
    for (int r = 0; r < R; r++) acc[o][r] = _mm512_setzero_ps();
  auto step = [&](int64_t k, __mmask32 mask) {
    __m512bh weights[O];
    for (int o = 0; o < O; o++) weights[o] = load_masked(w + o * inputs + k, mask);
    for (int r = 0; r < R; r++) {
      __m512bh in = load_masked(x + r * inputs + k, mask);
      for (int o = 0; o < O; o++) acc[o][r] = _mm512_dpbf16_ps(acc[o][r], weights[o], in);
    }
  };
  int64_t full = inputs / 32 * 32;
  for (int64_t k = 0; k < full; k += 32) {
    // Prefetch the next rows of W. The hardware prefetcher does not reach them, because it stops at page boundaries,
    // and a row is about one page long.
    for (int o = 0; o < O; o++) __builtin_prefetch(w + (O + o) * inputs + k);
    step(k, ~__mmask32(0));
  }
  if (full < inputs) step(full, (__mmask32(1) << (inputs - full)) - 1);
  for (int o = 0; o < O; o++)
    for (int r = 0; r < R; r++) {
      float total = horizontal_sum((f32x16)acc[o][r]) + (bias ? to_float(bias + o) : 0.0f);
      store_partial(y + r * outputs + o, broadcast(total), 1);
    }
}

using Dot = void (*)(const bf16*, const bf16*, int64_t, const bf16*, bf16*, int64_t);

template <int O>
Dot dot_for(int64_t rows) {
  static const Dot table[] = {dot<1, O>, dot<2, O>, dot<3, O>, dot<4, O>, dot<5, O>, dot<6, O>};
  return table[rows - 1];
}

}  // namespace

void team::bf16_linear(const bf16* x, int64_t rows, int64_t inputs, const bf16* w, int64_t outputs, const bf16* bias,
                       bf16* y) {
#pragma omp for schedule(dynamic, 16)
  for (int64_t o = 0; o < outputs; o += OUTPUTS)
    for (int64_t r = 0; r < rows; r += ROWS) {
      int64_t count = std::min<int64_t>(ROWS, rows - r), end = std::min(o + OUTPUTS, outputs);
      bool is_full = end - o == OUTPUTS;
      Dot dot = is_full ? dot_for<OUTPUTS>(count) : dot_for<1>(count);
      for (int64_t first = o; first < end; first += is_full ? OUTPUTS : 1)
        dot(x + r * inputs, w + first * inputs, inputs, bias ? bias + first : nullptr, y + r * outputs + first,
            outputs);
    }
}

extern "C" void bf16_linear(const bf16* x, int64_t rows, int64_t inputs, const bf16* w, int64_t outputs,
                            const bf16* bias, bf16* y, int threads) {
#pragma omp parallel num_threads(threads)
  team::bf16_linear(x, rows, inputs, w, outputs, bias, y);
}
#endif
