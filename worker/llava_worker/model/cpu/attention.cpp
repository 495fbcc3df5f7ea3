// One query a row over keys and values that stay where they lie, in the blocks of a paged cache.
//
// A thread walks a share of a row's key heads over its context, TOKENS positions at a time: scores, then the running
// maximum and sum of the softmax, then values. Memory is read once.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "vectors.h"

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

// A slot is about a page, and the machine's own prefetching ends with each page.
INLINE void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)from + i, 0, 2);
}

// to += p[0] * values[slots[0]] + ..., with the sums of up to 128 numbers in registers.
template <int LANES, class K>
INLINE void add_values(float* to, const float* p, const K* values, const int64_t* starts, int64_t num) {
  f32x16 sums[LANES];
  for (int i = 0; i < LANES; i++) sums[i] = load(to + i * 16);
  for (int64_t token = 0; token < num; token++)
    for (int i = 0; i < LANES; i++) sums[i] += load(values + starts[token] + i * 16) * p[token];
  for (int i = 0; i < LANES; i++) store(to + i * 16, sums[i]);
}

// The softmax so far of one query head: of what it has seen.
struct Head {
  float most = -INFINITY, total = 0;
  float* values;  // [size], weighted by e^(score - most)
};

void take_scores(Head& head, float* scores, int64_t size) {
  float most = std::max(head.most, std::max(largest(load(scores)), largest(load(scores + 16))));
  if (!(most > -INFINITY)) most = 0;
  float shrink = std::exp(head.most - most);
  f32x16 total{};
  for (int i = 0; i < TOKENS; i += 16) {
    f32x16 s = load(scores + i);
    f32x16 p = s == -INFINITY ? f32x16{} : exponential(s - most);
    store(scores + i, p);
    total += p;
  }
  head.total = head.total * shrink + sum(total);
  head.most = most;
  if (shrink != 1.0f)
    for (int64_t k = 0; k < size; k += 16) store(head.values + k, load(head.values + k) * shrink);
}

// A row's heads [first, last) of keys and values, and all query heads of each.
template <class T, class K>
struct Share {
  const Decode<T, K>& d;
  int64_t row, first, last;
  int64_t per_kv = d.heads / d.kv_heads, count = (last - first) * per_kv;
  std::vector<float> queries = std::vector<float>(count * d.size);  // times the softmax's scale
  std::vector<float> values = std::vector<float>(count * d.size);
  std::vector<float> scores = std::vector<float>(count * TOKENS);
  std::vector<Head> heads = std::vector<Head>(count);

  void attend() {
    const T* q = d.q + row * d.q_stride + first * per_kv * d.size;
    for (int64_t k = 0; k < count * d.size; k += 16) store(&queries[k], load(q + k) * d.scale);
    for (int64_t h = 0; h < count; h++) heads[h].values = &values[h * d.size];
    int64_t end = d.contexts[row], begin = d.window > 0 ? std::max<int64_t>(0, end - d.window) : 0;
    for (int64_t place = begin; place < end; place += TOKENS) see(place, std::min<int64_t>(TOKENS, end - place));
    T* out = d.out + (row * d.heads + first * per_kv) * d.size;
    for (int64_t h = 0; h < count; h++)
      for (int64_t k = 0; k < d.size; k += 16)
        store(out + h * d.size + k, load(heads[h].values + k) * (1 / heads[h].total));
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
        float scale = scale_of(d.key_scales, starts[i] / d.size + kv, key);
        for (int64_t end = h + per_kv; h < end; h++)
          scores[h * TOKENS + i] = product(&queries[h * d.size], key, d.size) * scale;
      }
    }
    for (int64_t h = 0; h < count; h++) {
      float* p = &scores[h * TOKENS];
      int64_t kv = h / per_kv;
      take_scores(heads[h], p, d.size);
      for (int64_t i = 0; i < num; i++) p[i] *= scale_of(d.value_scales, starts[i] / d.size + kv, d.values);
      int64_t k = 0;
      for (; k + 128 <= d.size; k += 128)
        add_values<8>(heads[h].values + k, p, d.values + kv * d.size + k, starts, num);
      for (; k < d.size; k += 16) add_values<1>(heads[h].values + k, p, d.values + kv * d.size + k, starts, num);
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
