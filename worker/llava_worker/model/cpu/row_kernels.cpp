// Applies the operations between matrix products to rows in parallel. Each kernel makes one pass over the rows, while
// torch makes up to five.
#include "row_kernels.h"

namespace {

template <class F>
void parallel_rows(int64_t rows, int64_t size, int threads, F f) {
  int num_threads = int(std::min<int64_t>(threads, 1 + rows * size / 16384));  // waking a thread costs microseconds
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) f(row);
}

template <class T>
void rms_norm_rows(const T* x, const T* weight, float eps, int64_t rows, int64_t size, T* y, int threads) {
  parallel_rows(rows, size, threads,
                [&](int64_t row) { rms_norm_row(x + row * size, weight, eps, size, y + row * size); });
}

template <class T>
void add_rms_norm_rows(const T* x, const T* residual, const T* weight, float eps, int64_t rows, int64_t size, T* total,
                       T* y, int threads) {
  parallel_rows(rows, size, threads, [&](int64_t row) {
    T* sum = total + row * size;
    std::copy_n(residual + row * size, size, sum);
    add_row(x + row * size, size, sum);
    rms_norm_row(sum, weight, eps, size, y + row * size);
  });
}

template <class T>
void rope_rows(const T* x, int64_t stride, const T* cos, const T* sin, int64_t rows, int64_t heads, int64_t half, T* y,
               int threads) {
  parallel_rows(rows, heads * half, threads, [&](int64_t row) {
    for (int64_t head = 0; head < heads; head++)
      rotate_head(x + row * stride + head * 2 * half, cos + row * half, sin + row * half, half,
                  y + (row * heads + head) * 2 * half);
  });
}

template <class T>
void silu_and_mul_rows(const T* x, int64_t rows, int64_t size, T* y, int threads) {
  parallel_rows(rows, size, threads, [&](int64_t row) {
    silu_and_mul_row(x + row * 2 * size, x + row * 2 * size + size, size, y + row * size);
  });
}

template <class T>
void quick_gelu_rows(const T* x, int64_t rows, int64_t size, T* y, int threads) {
  parallel_rows(rows, size, threads, [&](int64_t row) { quick_gelu_row(x + row * size, size, y + row * size); });
}

}  // namespace

// All functions accept bf16 or fp32 rows. The result is contiguous and has the same type as the input.

extern "C" void rms_norm(int is_bf16, const void* x, const void* weight, float eps, int64_t rows, int64_t size,
                         void* y, int threads) {
  if (is_bf16) rms_norm_rows((const bf16*)x, (const bf16*)weight, eps, rows, size, (bf16*)y, threads);
  else rms_norm_rows((const float*)x, (const float*)weight, eps, rows, size, (float*)y, threads);
}

// Computes total = x + residual, and y, the norm of the total.
extern "C" void add_rms_norm(int is_bf16, const void* x, const void* residual, const void* weight, float eps,
                             int64_t rows, int64_t size, void* total, void* y, int threads) {
  auto run = [&](auto* typed_y) {
    using T = std::remove_reference_t<decltype(*typed_y)>;
    add_rms_norm_rows((const T*)x, (const T*)residual, (const T*)weight, eps, rows, size, (T*)total, typed_y, threads);
  };
  if (is_bf16) run((bf16*)y);
  else run((float*)y);
}

// x [rows][heads][2 * half], with a row stride of ``stride`` elements; cos and sin [rows][half].
extern "C" void rope(int is_bf16, const void* x, int64_t stride, const void* cos, const void* sin, int64_t rows,
                     int64_t heads, int64_t half, void* y, int threads) {
  if (is_bf16)
    rope_rows((const bf16*)x, stride, (const bf16*)cos, (const bf16*)sin, rows, heads, half, (bf16*)y, threads);
  else
    rope_rows((const float*)x, stride, (const float*)cos, (const float*)sin, rows, heads, half, (float*)y, threads);
}

// silu(left half of x) * right half; x [rows][2 * size].
extern "C" void silu_and_mul(int is_bf16, const void* x, int64_t rows, int64_t size, void* y, int threads) {
  if (is_bf16) silu_and_mul_rows((const bf16*)x, rows, size, (bf16*)y, threads);
  else silu_and_mul_rows((const float*)x, rows, size, (float*)y, threads);
}

extern "C" void quick_gelu(int is_bf16, const void* x, int64_t rows, int64_t size, void* y, int threads) {
  if (is_bf16) quick_gelu_rows((const bf16*)x, rows, size, (bf16*)y, threads);
  else quick_gelu_rows((const float*)x, rows, size, (float*)y, threads);
}
