// Applies RoPE to the queries and keys of new tokens, and stores keys and values in the paged KV cache.
//
// This is one pass over memory. With separate operations, keys would be written twice, and torch would look up the slot
// of each head separately, because the cache is head-major.
#include <algorithm>
#include <cfloat>

#include "row_kernels.h"
#include "team_kernels.h"

namespace {

// Stores a key or a value in the cache.
template <class T>
INLINE void store_head(const T* head, int64_t size, T* to, float*) { std::copy_n(head, size, to); }

// The format is described in kv_quantization.py.
template <class T>
INLINE void store_head(const T* head, int64_t size, int8_t* to, float* scale) {
  f32x16 lane_max{}, non_finite{};
  for (int64_t k = 0; k < size; k += 16) {
    f32x16 v = load(head + k);
    lane_max = maximum(absolute(v), lane_max);
    non_finite += v - v;  // NaN if v is infinite or NaN, which makes the scale NaN; otherwise 0
  }
  bf16 as_bf16;
  store_partial(&as_bf16, broadcast(horizontal_max(lane_max) / 127.0f), 1);
  float rounded = std::max(to_float(&as_bf16), FLT_MIN);
  for (int64_t k = 0; k < size; k += 16) {
    f32x16 v = load(head + k) / rounded;
    v = v > 127.0f ? broadcast(127.0f) : v;
    v = v < -127.0f ? broadcast(-127.0f) : v;
    write(to + k, to_int8(round_to_int(v)));
  }
  *scale = rounded + horizontal_sum(non_finite);
}

}  // namespace

template <class T, class K>
void team::rope_and_cache(const NewTokens<T, K>& t) {
  int64_t heads = t.heads + 2 * t.kv_heads, half = t.size / 2;
#pragma omp for schedule(static) collapse(2)
  for (int64_t row = 0; row < t.rows; row++)
    for (int64_t h = 0; h < heads; h++) {
      T* head = t.qkv + (row * heads + h) * t.size;
      bool is_query = h < t.heads, is_key = !is_query && h < t.heads + t.kv_heads;
      if (is_query || is_key) rotate_head(head, t.cos + row * half, t.sin + row * half, half, head);
      if (is_query) continue;
      int64_t block = t.slots[row] / t.block_size, offset = t.slots[row] % t.block_size;
      int64_t to = (block * t.kv_heads + (h - t.heads) % t.kv_heads) * t.block_size + offset;
      float* scales = is_key ? t.key_scales : t.value_scales;
      store_head(head, t.size, (is_key ? t.keys : t.values) + to * t.size, scales ? scales + to : nullptr);
    }
}

template void team::rope_and_cache(const NewTokens<bf16, bf16>&);
template void team::rope_and_cache(const NewTokens<bf16, int8_t>&);
template void team::rope_and_cache(const NewTokens<float, float>&);
template void team::rope_and_cache(const NewTokens<float, int8_t>&);

// ``size``, the head size, must be a multiple of 16. Scales must be null unless the cache is int8.
extern "C" void rope_and_cache(int is_bf16, void* qkv, const void* cos, const void* sin, void* keys, void* values,
                               float* key_scales, float* value_scales, const int64_t* slots, int64_t rows,
                               int64_t heads, int64_t kv_heads, int64_t size, int64_t block_size, int threads) {
  auto run = [&](auto* typed_qkv, auto* typed_keys) {
    using T = std::remove_reference_t<decltype(*typed_qkv)>;
    using K = std::remove_reference_t<decltype(*typed_keys)>;
    NewTokens<T, K> tokens{typed_qkv, (const T*)cos, (const T*)sin, typed_keys, (K*)values, key_scales, value_scales,
                           slots,     rows,          heads,         kv_heads,   size,       block_size};
#pragma omp parallel num_threads(threads)
    team::rope_and_cache(tokens);
  };
  if (is_bf16 && key_scales) run((bf16*)qkv, (int8_t*)keys);
  else if (is_bf16) run((bf16*)qkv, (bf16*)keys);
  else if (key_scales) run((float*)qkv, (int8_t*)keys);
  else run((float*)qkv, (float*)keys);
}
