// Many queries of one sequence over its keys and values, in bf16: a prompt's chunk over the paged cache, or the
// patches of a picture over each other.
//
// KEYS positions at a time are repacked so that one instruction multiplies pairs of numbers for sixteen keys, or
// for sixteen numbers of values; then QUERIES queries at a time pass over them: scores, the running maximum and
// sum of the softmax, values. Blocks of keys begin at multiples of KEYS, so a query's answer is the same to the
// bit however its prompt was cut into chunks. Nothing outside of what a sequence sees is read.
//
// Not for AVX2: with half of the registers, and numbers widened one by one, it took three times torch's time.
#ifdef __AVX512F__
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "online_softmax.h"

namespace {

constexpr int KEYS = 128;
constexpr int QUERIES = 12;  // 24 sums, 2 keys and a pair of a query in 32 registers

// K: of keys and values, bf16 or signed bytes with a scale for each head of a slot.
template <class K>
struct Prompt {
  const bf16* q;  // [queries][heads][size], its tokens q_stride apart
  const K *keys, *values;                  // [slots][kv_heads][size], slots kv_stride apart
  const float *key_scales, *value_scales;  // [slots][kv_heads]; for bytes only
  const int64_t* table;
  bf16* out;  // [queries][heads][size]
  int64_t q_stride, kv_stride, queries, context, heads, kv_heads, size, block_size, window;
  float scale;
  bool is_causal;

  int64_t slot(int64_t place) const { return table[place / block_size] * block_size + place % block_size; }
  // Keys [first, last) are what query ``i`` sees.
  int64_t last(int64_t i) const { return is_causal ? context - queries + i + 1 : context; }
  int64_t first(int64_t i) const { return window > 0 ? std::max<int64_t>(0, last(i) - window) : 0; }
};

INLINE bf16 number(const bf16* from, float) { return *from; }
INLINE bf16 number(const int8_t* from, float scale) {
  bf16 lanes[16];
  store(lanes, same(float(*from) * scale));
  return lanes[0];
}
INLINE float scale_at(const float*, int64_t, const bf16*) { return 1.0f; }
INLINE float scale_at(const float* scales, int64_t place, const int8_t*) { return scales[place]; }

INLINE uint32_t pair(bf16 low, bf16 high) { return uint32_t(low.bits) | uint32_t(high.bits) << 16; }

// KEYS keys and values of one head; what is beyond the context is 0.
struct Packed {
  std::vector<uint32_t> keys;    // [KEYS / 16][size / 2][16]: two numbers of sixteen keys
  std::vector<uint32_t> values;  // [KEYS / 2][size]: one number of two values

  template <class K>
  void fill(const Prompt<K>& p, int64_t head, int64_t begin) {
    int64_t num = std::min<int64_t>(KEYS, p.context - begin), pairs = p.size / 2;
    keys.assign(KEYS * pairs, 0);
    values.assign(KEYS / 2 * p.size, 0);
    for (int64_t i = 0; i < num; i++) {
      int64_t slot = p.slot(begin + i), start = slot * p.kv_stride + head * p.size, place = slot * p.kv_heads + head;
      const K *key = p.keys + start, *value = p.values + start;
      float key_scale = scale_at(p.key_scales, place, key), value_scale = scale_at(p.value_scales, place, value);
      uint32_t* to = &keys[i / 16 * pairs * 16 + i % 16];
      for (int64_t k = 0; k < pairs; k++)
        to[k * 16] = pair(number(key + 2 * k, key_scale), number(key + 2 * k + 1, key_scale));
      uint16_t* halves = (uint16_t*)&values[i / 2 * p.size] + i % 2;
      for (int64_t k = 0; k < p.size; k++) halves[2 * k] = number(value + k, value_scale).bits;
    }
  }
};

// scores [R][KEYS] of the first ``num`` keys, rounded up to 32.
template <int R>
void score(const bf16* q, int64_t q_stride, const uint32_t* keys, int64_t pairs, int64_t num, float* scores) {
  for (int64_t v = 0; v * 16 < num; v += 2) {
    const uint32_t *left = keys + v * pairs * 16, *right = left + pairs * 16;
    f32x16 sums[R][2] = {};
    for (int64_t k = 0; k < pairs; k++) {
      u32x16 a = read<u32x16>(left + k * 16), b = read<u32x16>(right + k * 16);
      for (int r = 0; r < R; r++) {
        uint32_t two = read<uint32_t>(q + r * q_stride + 2 * k);
        sums[r][0] = dot2(sums[r][0], a, two);
        sums[r][1] = dot2(sums[r][1], b, two);
      }
    }
    for (int r = 0; r < R; r++)
      for (int half = 0; half < 2; half++) store(scores + r * KEYS + (v + half) * 16, sums[r][half]);
  }
}

// to [R][size] += weights [R][KEYS] times the values of the first ``num`` keys.
template <int R, int WIDTH>
INLINE void add_columns(const uint32_t* weights, const uint32_t* values, int64_t size, int64_t num, float* to) {
  f32x16 sums[R][WIDTH];
  for (int r = 0; r < R; r++)
    for (int i = 0; i < WIDTH; i++) sums[r][i] = load(to + r * size + i * 16);
  for (int64_t k = 0; k * 2 < num; k++) {
    u32x16 v[WIDTH];
    for (int i = 0; i < WIDTH; i++) v[i] = read<u32x16>(values + k * size + i * 16);
    for (int r = 0; r < R; r++)
      for (int i = 0; i < WIDTH; i++) sums[r][i] = dot2(sums[r][i], v[i], weights[r * (KEYS / 2) + k]);
  }
  for (int r = 0; r < R; r++)
    for (int i = 0; i < WIDTH; i++) store(to + r * size + i * 16, sums[r][i]);
}

// One query head of all queries, so far.
struct Progress {
  std::vector<Softmax> softmax;  // [queries]
  std::vector<float> values;     // [queries][size]

  Progress(int64_t queries, int64_t size) : softmax(queries), values(queries * size) {}
};

// The first ``num`` scores times ``scale``, of which [first, last) are seen.
void mask(float* scores, int64_t num, float scale, int64_t first, int64_t last) {
  i32x16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t k = 0; k < num; k += 16) {
    i32x16 place = lanes + int32_t(k);
    f32x16 s = load(scores + k) * scale;
    store(scores + k, (place >= int32_t(first)) & (place < int32_t(last)) ? s : same(-INFINITY));
  }
}

// Queries [i, i + R) over the keys from ``begin`` on.
template <int R, class K>
void pass(const Prompt<K>& p, int64_t head, int64_t i, int64_t begin, const Packed& packed, Progress& progress) {
  int64_t num = std::min<int64_t>(KEYS, p.last(i + R - 1) - begin);
  num = (num + 31) / 32 * 32;
  alignas(64) float scores[R * KEYS];
  alignas(64) bf16 weights[R * KEYS];
  score<R>(p.q + i * p.q_stride + head * p.size, p.q_stride, packed.keys.data(), p.size / 2, num, scores);
  for (int r = 0; r < R; r++) {
    float* own = scores + r * KEYS;
    mask(own, num, p.scale, p.first(i + r) - begin, p.last(i + r) - begin);
    progress.softmax[i + r].take(own, num, weights + r * KEYS, &progress.values[(i + r) * p.size], p.size);
  }
  float* to = &progress.values[i * p.size];
  const uint32_t *two = (const uint32_t*)weights, *values = packed.values.data();
  int64_t k = 0;
  for (; k + 32 <= p.size; k += 32) add_columns<R, 2>(two, values + k, p.size, num, to + k);
  if (k < p.size) add_columns<R, 1>(two, values + k, p.size, num, to + k);
}

template <class K>
using Pass = void (*)(const Prompt<K>&, int64_t, int64_t, int64_t, const Packed&, Progress&);

template <class K, int... R>
Pass<K> pass_for(int rows, std::integer_sequence<int, R...>) {
  static const Pass<K> table[] = {pass<R + 1, K>...};
  return table[rows - 1];
}

// All heads that share key head ``kv_head``, for each ``shares``-th tile of queries from ``share`` on.
template <class K>
void attend(const Prompt<K>& p, int64_t kv_head, int64_t share, int64_t shares) {
  int64_t per_kv = p.heads / p.kv_heads, tiles = (p.queries + QUERIES - 1) / QUERIES;
  std::vector<Progress> progress(per_kv, Progress(p.queries, p.size));
  Packed packed;
  for (int64_t begin = p.first(0) / KEYS * KEYS; begin < p.context; begin += KEYS) {
    packed.fill(p, kv_head, begin);
    for (int64_t tile = share; tile < tiles; tile += shares) {
      int64_t i = tile * QUERIES, rows = std::min<int64_t>(QUERIES, p.queries - i);
      if (p.last(i + rows - 1) <= begin || p.first(i) >= begin + KEYS) continue;
      auto run = pass_for<K>(int(rows), std::make_integer_sequence<int, QUERIES>());
      for (int64_t h = 0; h < per_kv; h++) run(p, kv_head * per_kv + h, i, begin, packed, progress[h]);
    }
  }
  for (int64_t i = 0; i < p.queries; i++) {
    if (i / QUERIES % shares != share) continue;
    for (int64_t h = 0; h < per_kv; h++)
      for (int64_t k = 0; k < p.size; k += 16)
        store(p.out + (i * p.heads + kv_head * per_kv + h) * p.size + k,
              load(&progress[h].values[i * p.size + k]) * (1 / progress[h].softmax[i].total));
  }
}

template <class K>
void attend_all(const Prompt<K>& p, int threads) {
  int64_t shares = (threads + p.kv_heads - 1) / p.kv_heads;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < p.kv_heads * shares; task++) attend(p, task / shares, task % shares, shares);
}

}  // namespace

// ``size`` of a head is a multiple of 16; ``window`` 0 means none. Scales are null unless keys and values are bytes.
extern "C" void prefill_attention(const void* q, int64_t q_stride, const void* keys, const void* values,
                                 int64_t kv_stride, const float* key_scales, const float* value_scales,
                                 const int64_t* table, int64_t queries, int64_t context, int64_t heads,
                                 int64_t kv_heads, int64_t size, int64_t block_size, int64_t window, int is_causal,
                                 float scale, void* out, int threads) {
  auto run = [&](auto* stored) {
    using K = std::remove_reference_t<decltype(*stored)>;
    attend_all(Prompt<K>{(const bf16*)q, (const K*)keys, (const K*)values, key_scales, value_scales, table, (bf16*)out,
                         q_stride, kv_stride, queries, context, heads, kv_heads, size, block_size, window, scale,
                         is_causal != 0},
               threads);
  };
  bf16* half = nullptr;
  int8_t* byte = nullptr;
  if (key_scales) run(byte);
  else run(half);
}
#endif
