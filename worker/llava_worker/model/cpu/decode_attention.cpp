// One query a row over keys and values that stay where they lie, in the blocks of a paged cache.
//
// A thread walks a share of a row's key heads over its context, TOKENS positions at a time: scores, then the running
// maximum and sum of the softmax, then values. Memory is read once.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "online_softmax.h"

namespace {

constexpr int TOKENS = 32;

// T: of queries and results. K: of keys and values, T or signed bytes with a scale for each head of a slot.
template <class T, class K>
struct Decode {
  const T* q;  // [rows][heads][size]
  const K *keys, *values;                  // [slots][kv_heads][size]
  const float *key_scales, *value_scales;  // [slots][kv_heads]; for bytes only
  const int64_t *tables, *contexts;
  T* out;  // [rows][heads][size]
  int64_t q_stride, rows, heads, kv_heads, size, table_width, block_size, window;
  float scale;

  int64_t slot(int64_t row, int64_t place) const {
    return tables[row * table_width + place / block_size] * block_size + place % block_size;
  }
};

template <class T>
INLINE float scale_of(const float*, int64_t, const T*) { return 1.0f; }
INLINE float scale_of(const float* scales, int64_t place, const int8_t*) { return scales[place]; }

template <class K>
INLINE float product(const float* q, const K* key, int64_t size) {
  f32x16 a{}, b{};  // two, so that one addition need not wait for the other
  int64_t k = 0;
  for (; k + 32 <= size; k += 32) {
    a += load(q + k) * load(key + k);
    b += load(q + k + 16) * load(key + k + 16);
  }
  if (k < size) a += load(q + k) * load(key + k);
  return sum(a + b);
}

// What a query is kept as beside keys K: as it came where one instruction multiplies pairs of both, else fp32.
template <class T, class K>
struct Kept {
  using type = float;
};

#ifdef __AVX512BF16__
template <>
struct Kept<bf16, bf16> {
  using type = bf16;
};

INLINE float product(const bf16* q, const bf16* key, int64_t size) {
  f32x16 a{};
  auto add = [&](const __m512i two, const __m512i other) {
    a = (f32x16)_mm512_dpbf16_ps((__m512)a, (__m512bh)two, (__m512bh)other);
  };
  int64_t k = 0;
  for (; k + 32 <= size; k += 32) add(_mm512_loadu_si512(q + k), _mm512_loadu_si512(key + k));
  constexpr __mmask32 HALF = 0xffff;
  if (k < size) add(_mm512_maskz_loadu_epi16(HALF, q + k), _mm512_maskz_loadu_epi16(HALF, key + k));
  return sum(a);
}
#endif

// A slot is about a page, and the machine's own prefetching ends with each page.
INLINE void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)from + i, 0, 2);
}

// to += p[0] * values[starts[0]] + ..., with the sums of up to 128 numbers in registers.
template <int LANES, class K>
INLINE void add_columns(float* to, const float* p, const K* values, const int64_t* starts, int64_t num) {
  f32x16 sums[LANES];
  for (int i = 0; i < LANES; i++) sums[i] = load(to + i * 16);
  for (int64_t token = 0; token < num; token++)
    for (int i = 0; i < LANES; i++) sums[i] += load(values + starts[token] + i * 16) * p[token];
  for (int i = 0; i < LANES; i++) store(to + i * 16, sums[i]);
}

// Weighted values as they are summed up: in order.
template <class T, class K>
struct Columns {
  static void add(float* to, const float* p, const K* values, const int64_t* starts, int64_t num, int64_t size) {
    int64_t k = 0;
    for (; k + 128 <= size; k += 128) add_columns<8>(to + k, p, values + k, starts, num);
    for (; k < size; k += 16) add_columns<1>(to + k, p, values + k, starts, num);
  }
  static void put(T* out, const float* values, float factor, int64_t size) {
    for (int64_t k = 0; k < size; k += 16) store(out + k, load(values + k) * factor);
  }
};

template <class T, class K>
struct Values : Columns<T, K> {};

#ifdef __AVX512BF16__
// Two tokens at a time: to += p[0] * values[starts[0]] + p[1] * values[starts[1]] ... of an even number.
template <int WIDTH>
INLINE void add_pairs(float* to, const bf16* p, const bf16* values, const int64_t* starts, int64_t num) {
  f32x16 sums[WIDTH][2];
  for (int i = 0; i < WIDTH * 2; i++) sums[i / 2][i % 2] = load(to + i * 16);
  for (int64_t token = 0; token < num; token += 2) {
    uint32_t both = read<uint32_t>(p + token);
    for (int i = 0; i < WIDTH; i++) {
      __m512i a = _mm512_loadu_si512(values + starts[token] + i * 32);
      __m512i b = _mm512_loadu_si512(values + starts[token + 1] + i * 32);
      sums[i][0] = dot2(sums[i][0], (u32x16)_mm512_unpacklo_epi16(a, b), both);
      sums[i][1] = dot2(sums[i][1], (u32x16)_mm512_unpackhi_epi16(a, b), both);
    }
  }
  for (int i = 0; i < WIDTH * 2; i++) store(to + i * 16, sums[i / 2][i % 2]);
}

// Interleaving two rows takes of each eight numbers the first four to one vector and the others to the next; so
// they stay until they are put.
template <>
struct Values<bf16, bf16> {
  static void add(float* to, const float* p, const bf16* values, const int64_t* starts, int64_t num, int64_t size) {
    if (size % 32) return Columns<bf16, bf16>::add(to, p, values, starts, num, size);
    bf16 weights[TOKENS];
    int64_t places[TOKENS];
    for (int i = 0; i < TOKENS; i += 16) store(weights + i, load(p + i));  // 0 beyond num
    for (int64_t i = 0; i < (num + 1) / 2 * 2; i++) places[i] = starts[std::min(i, num - 1)];
    int64_t k = 0;
    for (; k + 128 <= size; k += 128) add_pairs<4>(to + k, weights, values + k, places, (num + 1) / 2 * 2);
    for (; k < size; k += 32) add_pairs<1>(to + k, weights, values + k, places, (num + 1) / 2 * 2);
  }
  static void put(bf16* out, const float* values, float factor, int64_t size) {
    if (size % 32) return Columns<bf16, bf16>::put(out, values, factor, size);
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

// The softmax so far of one query head: of what it has seen.
struct Head {
  Softmax softmax;
  float* values;  // [size], weighted by e^(score - most)
};

// A row's heads [first, last) of keys and values, and all query heads of each.
template <class T, class K>
struct Share {
  const Decode<T, K>& d;
  int64_t row, first, last;
  int64_t per_kv = d.heads / d.kv_heads, count = (last - first) * per_kv;
  using Query = typename Kept<T, K>::type;
  std::vector<Query> queries = std::vector<Query>(count * d.size);
  std::vector<float> values = std::vector<float>(count * d.size);
  std::vector<float> scores = std::vector<float>(count * TOKENS);
  std::vector<Head> heads = std::vector<Head>(count);

  void attend() {
    const T* q = d.q + row * d.q_stride + first * per_kv * d.size;
    for (int64_t k = 0; k < count * d.size; k += 16) store(&queries[k], load(q + k));
    for (int64_t h = 0; h < count; h++) heads[h].values = &values[h * d.size];
    int64_t end = d.contexts[row], begin = d.window > 0 ? std::max<int64_t>(0, end - d.window) : 0;
    for (int64_t place = begin; place < end; place += TOKENS) see(place, std::min<int64_t>(TOKENS, end - place));
    T* out = d.out + (row * d.heads + first * per_kv) * d.size;
    for (int64_t h = 0; h < count; h++)
      Values<T, K>::put(out + h * d.size, heads[h].values, 1 / heads[h].softmax.total, d.size);
  }

  void see(int64_t place, int64_t num) {
    int64_t starts[TOKENS], bytes = (last - first) * d.size * int64_t(sizeof(K));
    for (int64_t i = 0; i < num; i++) starts[i] = (d.slot(row, place + i) * d.kv_heads + first) * d.size;
    std::fill(scores.begin(), scores.end(), -INFINITY);
    for (int64_t i = 0; i < num; i++) {
      if (i + 1 < num) prefetch(d.keys + starts[i + 1], bytes);
      prefetch(d.values + starts[i], bytes);
      for (int64_t kv = 0, h = 0; kv < last - first; kv++) {
        const K* key = d.keys + starts[i] + kv * d.size;
        float scale = scale_of(d.key_scales, starts[i] / d.size + kv, key) * d.scale;
        for (int64_t end = h + per_kv; h < end; h++)
          scores[h * TOKENS + i] = product(&queries[h * d.size], key, d.size) * scale;
      }
    }
    for (int64_t h = 0; h < count; h++) {
      float* p = &scores[h * TOKENS];
      int64_t kv = h / per_kv;
      heads[h].softmax.take(p, TOKENS, p, heads[h].values, d.size);
      for (int64_t i = 0; i < num; i++) p[i] *= scale_of(d.value_scales, starts[i] / d.size + kv, d.values);
      Values<T, K>::add(heads[h].values, p, d.values + kv * d.size, starts, num, d.size);
    }
  }
};

template <class T, class K>
void decode(const Decode<T, K>& d, int threads) {
  int64_t shares = std::min<int64_t>(d.kv_heads, std::max<int64_t>(1, threads / d.rows));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < d.rows * shares; task++) {
    int64_t share = task % shares;
    Share<T, K>{d, task / shares, d.kv_heads * share / shares, d.kv_heads * (share + 1) / shares}.attend();
  }
}

}  // namespace

// ``size`` of a head is a multiple of 16; ``window`` 0 means none. Scales are null unless keys and values are bytes.
extern "C" void decode_attention(int is_bf16, const void* q, int64_t q_stride, const void* keys, const void* values,
                                 const float* key_scales, const float* value_scales, const int64_t* tables,
                                 const int64_t* contexts, int64_t rows, int64_t heads, int64_t kv_heads, int64_t size,
                                 int64_t table_width, int64_t block_size, int64_t window, float scale, void* out,
                                 int threads) {
  auto run = [&](auto* queries, auto* stored) {
    using T = std::remove_reference_t<decltype(*queries)>;
    using K = std::remove_reference_t<decltype(*stored)>;
    Decode<T, K> d{(const T*)q, (const K*)keys, (const K*)values, key_scales, value_scales, tables, contexts, (T*)out,
                   q_stride, rows, heads, kv_heads, size, table_width, block_size, window, scale};
    decode(d, threads);
  };
  bf16* half = nullptr;
  float* whole = nullptr;
  int8_t* byte = nullptr;
  if (is_bf16 && key_scales) run(half, byte);
  else if (is_bf16) run(half, half);
  else if (key_scales) run(whole, byte);
  else run(whole, whole);
}
