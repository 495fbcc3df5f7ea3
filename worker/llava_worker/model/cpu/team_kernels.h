// Kernels that all threads of an OpenMP team call together. They share the work of the current parallel region, and end
// with a barrier.
#pragma once

#include <algorithm>
#include <vector>

#include "quantization.h"

// Buffers for rows of x that are quantized for a product. All threads of a team use the same buffers.
struct QuantizedRows {
  std::vector<int8_t> codes;
  std::vector<int32_t> offsets;
  std::vector<float> scales;

  void reserve(int64_t rows, const QuantizedWeight& w) {  // called by one thread
    codes.resize(std::max<size_t>(codes.size(), rows * w.padded));
    offsets.resize(std::max<size_t>(offsets.size(), rows * w.groups()));
    scales.resize(std::max<size_t>(scales.size(), rows * w.groups()));
  }
};

// T is the type of queries and results. K is the type of keys and values: T, or int8 with one scale per head and slot.
template <class T, class K>
struct DecodeAttention {
  const T* q;                              // [rows][heads][size]
  const K *keys, *values;                  // [blocks][kv_heads][block_size][size]
  const float *key_scales, *value_scales;  // [blocks][kv_heads][block_size]; int8 only
  const int64_t *tables, *contexts;
  T* out;  // [rows][heads][size]
  int64_t q_stride, rows, heads, kv_heads, size, table_width, block_size, window;
  float scale;

  const int64_t* table(int64_t row) const { return tables + row * table_width; }
  // The first position to which a row attends.
  int64_t begin(int64_t row) const { return window > 0 ? std::max<int64_t>(0, contexts[row] - window) : 0; }
  // The index of a key or value of one head in the cache.
  int64_t index(int64_t row, int64_t position, int64_t head) const {
    return (table(row)[position / block_size] * kv_heads + head) * block_size + position % block_size;
  }
};

// The queries are the last tokens of one sequence, or the patches of an image, which attend to each other. K is the type
// of keys and values: bf16, or int8 with one scale per head and slot.
template <class K>
struct PrefillAttention {
  const bf16* q;                           // [queries][heads][size], with a token stride of q_stride
  const K *keys, *values;                  // [blocks][kv_heads][block_size][size], with the strides below
  const float *key_scales, *value_scales;  // [blocks][kv_heads][block_size]; int8 only
  const int64_t* table;
  bf16* out;  // [queries][heads][size]
  int64_t q_stride, block_stride, head_stride, token_stride, queries, context, heads, kv_heads, size, block_size, window;
  float scale;
  bool is_causal;

  // The offset of a key or value, and the index of its scale.
  int64_t start(int64_t head, int64_t position) const {
    return table[position / block_size] * block_stride + head * head_stride + position % block_size * token_stride;
  }
  int64_t scale_index(int64_t head, int64_t position) const {
    return (table[position / block_size] * kv_heads + head) * block_size + position % block_size;
  }
  // Query ``i`` attends to keys [first(i), last(i)).
  int64_t last(int64_t i) const { return is_causal ? context - queries + i + 1 : context; }
  int64_t first(int64_t i) const { return window > 0 ? std::max<int64_t>(0, last(i) - window) : 0; }
};

// The queries, keys and values of new tokens, and the cache. T and K have the same meanings as above.
template <class T, class K>
struct NewTokens {
  T* qkv;                            // [rows][heads + 2 * kv_heads][size]
  const T *cos, *sin;                // [rows][size / 2]
  K *keys, *values;                  // [blocks][kv_heads][block_size][size]
  float *key_scales, *value_scales;  // [blocks][kv_heads][block_size]; int8 only
  const int64_t* slots;              // [rows]
  int64_t rows, heads, kv_heads, size, block_size;
};

namespace team {

template <class T>
void quantized_linear(int bits, const T* x, int64_t rows, int64_t inputs, const QuantizedWeight& w, const float* bias,
                      T* y, QuantizedRows& quantized);

// These exist only in variants with instructions for bf16 dot products.
void bf16_linear(const bf16* x, int64_t rows, int64_t inputs, const bf16* w, int64_t outputs, const bf16* bias,
                 bf16* y);
void packed_bf16_linear(const bf16* x, int64_t rows, int64_t inputs, const bf16* w, int64_t outputs, const bf16* bias,
                        bf16* y);

// Applies RoPE to queries and keys in place, and stores keys and values in the cache.
template <class T, class K>
void rope_and_cache(const NewTokens<T, K>& tokens);

template <class T, class K>
void decode_attention(const DecodeAttention<T, K>& args);

// Exists only in variants with AVX-512.
template <class K>
void prefill_attention(const PrefillAttention<K>& args);

}  // namespace team
