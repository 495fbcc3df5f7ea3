// Computes attention for one query per row, reading the paged KV cache in place.
//
// Each task processes some of the KV heads of one row. It iterates over the context, TOKENS positions at a time, and
// computes scores, online softmax and weighted values. Each key and value is read from memory only once.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "online_softmax.h"
#include "team_kernels.h"

namespace {

constexpr int TOKENS = 32;

template <class T>
INLINE float scale_of(const float*, int64_t, const T*) { return 1.0f; }
INLINE float scale_of(const float* scales, int64_t position, const int8_t*) { return scales[position]; }

template <class K>
INLINE float dot(const float* q, const K* key, int64_t size) {
  f32x16 a{}, b{};  // two accumulators, for instruction-level parallelism
  int64_t k = 0;
  for (; k + 32 <= size; k += 32) {
    a += load(q + k) * load(key + k);
    b += load(q + k + 16) * load(key + k + 16);
  }
  if (k < size) a += load(q + k) * load(key + k);
  return horizontal_sum(a + b);
}

// The type to which queries are converted: bf16 if T and K are bf16 and the CPU has an instruction for bf16 dot
// products, otherwise fp32.
template <class T, class K>
struct QueryType {
  using type = float;
};

#ifdef __AVX512BF16__
template <>
struct QueryType<bf16, bf16> {
  using type = bf16;
};

INLINE float dot(const bf16* q, const bf16* key, int64_t size) {
  f32x16 a{};
  auto add = [&](const __m512i two, const __m512i other) {
    a = (f32x16)_mm512_dpbf16_ps((__m512)a, (__m512bh)two, (__m512bh)other);
  };
  int64_t k = 0;
  for (; k + 32 <= size; k += 32) add(_mm512_loadu_si512(q + k), _mm512_loadu_si512(key + k));
  constexpr __mmask32 HALF = 0xffff;
  if (k < size) add(_mm512_maskz_loadu_epi16(HALF, q + k), _mm512_maskz_loadu_epi16(HALF, key + k));
  return horizontal_sum(a);
}
#endif

// Explicit prefetches are necessary because a slot is about one page long, and the hardware prefetcher stops at page
// boundaries. Unlike with weights, prefetches into the L1 cache are faster than those into the L2 cache.
INLINE void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)from + i);
}

// to += p[0] * values[starts[0]] + p[1] * values[starts[1]] + ..., with up to 128 sums in registers.
template <int LANES, class K>
INLINE void add_columns(float* to, const float* p, const K* values, const int64_t* starts, int64_t num) {
  f32x16 sums[LANES];
  for (int i = 0; i < LANES; i++) sums[i] = load(to + i * 16);
  for (int64_t token = 0; token < num; token++)
    for (int i = 0; i < LANES; i++) sums[i] += load(values + starts[token] + i * 16) * p[token];
  for (int i = 0; i < LANES; i++) store(to + i * 16, sums[i]);
}

// The sums of weighted values, stored in dimension order.
template <class T, class K>
struct InOrder {
  static void add(float* to, const float* p, const K* values, const int64_t* starts, int64_t num, int64_t size) {
    int64_t k = 0;
    for (; k + 128 <= size; k += 128) add_columns<8>(to + k, p, values + k, starts, num);
    for (; k < size; k += 16) add_columns<1>(to + k, p, values + k, starts, num);
  }
  static void store_result(T* out, const float* values, float factor, int64_t size) {
    for (int64_t k = 0; k < size; k += 16) store(out + k, load(values + k) * factor);
  }
};

template <class T, class K>
struct ValueSums : InOrder<T, K> {};

#ifdef __AVX512BF16__
// to += p[0] * values[starts[0]] + p[1] * values[starts[1]] + ..., two tokens at a time. ``num`` must be even.
template <int WIDTH>
INLINE void add_pairs(float* to, const bf16* p, const bf16* values, const int64_t* starts, int64_t num) {
  f32x16 sums[WIDTH][2];
  for (int i = 0; i < WIDTH * 2; i++) sums[i / 2][i % 2] = load(to + i * 16);
  for (int64_t token = 0; token < num; token += 2) {
    uint32_t both = read<uint32_t>(p + token);
    for (int i = 0; i < WIDTH; i++) {
      __m512i a = _mm512_loadu_si512(values + starts[token] + i * 32);
      __m512i b = _mm512_loadu_si512(values + starts[token + 1] + i * 32);
      sums[i][0] = dot2_bf16(sums[i][0], (u32x16)_mm512_unpacklo_epi16(a, b), both);
      sums[i][1] = dot2_bf16(sums[i][1], (u32x16)_mm512_unpackhi_epi16(a, b), both);
    }
  }
  for (int i = 0; i < WIDTH * 2; i++) store(to + i * 16, sums[i / 2][i % 2]);
}

// When the values of two tokens are interleaved, the first four of every eight elements end up in one vector and the
// other four in a second vector. The sums are stored in this order until store_result restores dimension order.
template <>
struct ValueSums<bf16, bf16> {
  static void add(float* to, const float* p, const bf16* values, const int64_t* starts, int64_t num, int64_t size) {
    if (size % 32) return InOrder<bf16, bf16>::add(to, p, values, starts, num, size);
    bf16 weights[TOKENS];
    int64_t padded_starts[TOKENS];
    for (int i = 0; i < TOKENS; i += 16) store(weights + i, load(p + i));  // 0 beyond num
    for (int64_t i = 0; i < (num + 1) / 2 * 2; i++) padded_starts[i] = starts[std::min(i, num - 1)];
    int64_t k = 0;
    for (; k + 128 <= size; k += 128) add_pairs<4>(to + k, weights, values + k, padded_starts, (num + 1) / 2 * 2);
    for (; k < size; k += 32) add_pairs<1>(to + k, weights, values + k, padded_starts, (num + 1) / 2 * 2);
  }
  static void store_result(bf16* out, const float* values, float factor, int64_t size) {
    if (size % 32) return InOrder<bf16, bf16>::store_result(out, values, factor, size);
    const __m512i order = _mm512_set_epi16(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8, 23, 22, 21, 20,
                                           7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    for (int64_t k = 0; k < size; k += 32) {
      __m512 first = (__m512)(load(values + k) * factor), others = (__m512)(load(values + k + 16) * factor);
      __m512i both = (__m512i)_mm512_cvtne2ps_pbh(others, first);
      _mm512_storeu_si512(out + k, _mm512_permutexvar_epi16(order, both));
    }
  }
};
#endif

// The softmax and the sum of weighted values for one query head.
struct HeadState {
  OnlineSoftmax softmax;
  float* values;  // [size], weighted by e^(score - max)
};

// KV heads [first, last) of one row, and the query heads that use them.
template <class T, class K>
struct HeadGroup {
  const DecodeAttention<T, K>& args;
  int64_t row, first, last;
  int64_t per_kv = args.heads / args.kv_heads, count = (last - first) * per_kv;
  using Query = typename QueryType<T, K>::type;
  std::vector<Query> queries = std::vector<Query>(count * args.size);
  std::vector<float> values = std::vector<float>(count * args.size);
  std::vector<float> scores = std::vector<float>(count * TOKENS);
  std::vector<HeadState> heads = std::vector<HeadState>(count);

  void attend() {
    const T* q = args.q + row * args.q_stride + first * per_kv * args.size;
    for (int64_t k = 0; k < count * args.size; k += 16) store(&queries[k], load(q + k));
    for (int64_t h = 0; h < count; h++) heads[h].values = &values[h * args.size];
    int64_t end = args.contexts[row], begin = args.window > 0 ? std::max<int64_t>(0, end - args.window) : 0;
    for (int64_t position = begin; position < end; position += TOKENS)
      process_block(position, std::min<int64_t>(TOKENS, end - position));
    T* out = args.out + (row * args.heads + first * per_kv) * args.size;
    for (int64_t h = 0; h < count; h++)
      ValueSums<T, K>::store_result(out + h * args.size, heads[h].values, 1 / heads[h].softmax.sum, args.size);
  }

  void process_block(int64_t position, int64_t num) {
    int64_t starts[TOKENS], bytes = (last - first) * args.size * int64_t(sizeof(K));
    for (int64_t i = 0; i < num; i++) starts[i] = (args.slot(row, position + i) * args.kv_heads + first) * args.size;
    std::fill(scores.begin(), scores.end(), -INFINITY);
    for (int64_t i = 0; i < num; i++) {
      if (i + 1 < num) prefetch(args.keys + starts[i + 1], bytes);
      prefetch(args.values + starts[i], bytes);
      for (int64_t kv = 0, h = 0; kv < last - first; kv++) {
        const K* key = args.keys + starts[i] + kv * args.size;
        float scale = scale_of(args.key_scales, starts[i] / args.size + kv, key) * args.scale;
        for (int64_t end = h + per_kv; h < end; h++)
          scores[h * TOKENS + i] = dot(&queries[h * args.size], key, args.size) * scale;
      }
    }
    for (int64_t h = 0; h < count; h++) {
      float* p = &scores[h * TOKENS];
      int64_t kv = h / per_kv;
      heads[h].softmax.update(p, TOKENS, p, heads[h].values, args.size);
      for (int64_t i = 0; i < num; i++) p[i] *= scale_of(args.value_scales, starts[i] / args.size + kv, args.values);
      ValueSums<T, K>::add(heads[h].values, p, args.values + kv * args.size, starts, num, args.size);
    }
  }
};

}  // namespace

template <class T, class K>
void team::decode_attention(const DecodeAttention<T, K>& args) {
  int64_t groups = std::min<int64_t>(args.kv_heads, std::max<int64_t>(1, omp_get_num_threads() / args.rows));
#pragma omp for schedule(dynamic)
  for (int64_t task = 0; task < args.rows * groups; task++) {
    int64_t group = task % groups;
    int64_t first = args.kv_heads * group / groups, last = args.kv_heads * (group + 1) / groups;
    HeadGroup<T, K>{args, task / groups, first, last}.attend();
  }
}

template void team::decode_attention(const DecodeAttention<bf16, bf16>&);
template void team::decode_attention(const DecodeAttention<bf16, int8_t>&);
template void team::decode_attention(const DecodeAttention<float, float>&);
template void team::decode_attention(const DecodeAttention<float, int8_t>&);

// ``size``, the head size, must be a multiple of 16. A ``window`` of 0 means unlimited. Scales must be null unless keys
// and values are int8.
extern "C" void decode_attention(int is_bf16, const void* q, int64_t q_stride, const void* keys, const void* values,
                                 const float* key_scales, const float* value_scales, const int64_t* tables,
                                 const int64_t* contexts, int64_t rows, int64_t heads, int64_t kv_heads, int64_t size,
                                 int64_t table_width, int64_t block_size, int64_t window, float scale, void* out,
                                 int threads) {
  auto run = [&](auto* queries, auto* stored) {
    using T = std::remove_reference_t<decltype(*queries)>;
    using K = std::remove_reference_t<decltype(*stored)>;
    DecodeAttention<T, K> args{(const T*)q, (const K*)keys, (const K*)values, key_scales, value_scales, tables,
                               contexts, (T*)out, q_stride, rows, heads, kv_heads, size, table_width, block_size,
                               window, scale};
#pragma omp parallel num_threads(threads)
    team::decode_attention(args);
  };
  bf16* as_bf16 = nullptr;
  float* as_fp32 = nullptr;
  int8_t* as_int8 = nullptr;
  if (is_bf16 && key_scales) run(as_bf16, as_int8);
  else if (is_bf16) run(as_bf16, as_bf16);
  else if (key_scales) run(as_fp32, as_int8);
  else run(as_fp32, as_fp32);
}
