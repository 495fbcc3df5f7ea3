// Computes bf16 attention for multiple queries of one sequence: a prompt chunk attending to the paged KV cache, or
// image patches attending to each other.
//
// Keys and values are repacked in blocks of KEYS positions, so that one instruction can multiply pairs of elements for
// sixteen keys, or for sixteen dimensions of the values. For each block, the kernel processes QUERIES queries at a
// time: scores, online softmax, weighted values. Blocks begin at multiples of KEYS, so the result for a query is
// bitwise identical no matter how the prompt is divided into chunks. Only slots in the context of the sequence are
// read.
//
// There is no AVX2 version: the one that was tested was three times as slow as torch, because AVX2 has only half as
// many registers and must widen bf16 elements individually.
#ifdef __AVX512F__
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "online_softmax.h"
#include "team_kernels.h"

namespace {

constexpr int KEYS = 128;
constexpr int QUERIES = 12;  // 32 registers hold 24 accumulators, 2 keys and a pair of query elements

INLINE u16x16 dequantize(const bf16* from, float) { return read<u16x16>(from); }
INLINE u16x16 dequantize(const int8_t* from, float scale) { return to_bf16(load(from) * scale); }

INLINE float scale_at(const float*, int64_t, const bf16*) { return 1.0f; }
INLINE float scale_at(const float* scales, int64_t row, const int8_t*) { return scales[row]; }

// Stores the pairs of elements of a key as every sixteenth element of ``to``.
template <class K>
INLINE void store_pairs(const K* key, float scale, int64_t size, uint32_t* to) {
  for (int64_t k = 0; k < size; k += 16) {
    uint32_t pairs[8];
    write(pairs, dequantize(key + k, scale));
    for (int i = 0; i < 8; i++) to[(k / 2 + i) * 16] = pairs[i];
  }
}

// Adds the elements of a value, shifted to the left, to the elements of ``to``, of which those bits must be 0.
template <class K>
INLINE void add_shifted(const K* value, float scale, int64_t size, int shift, uint32_t* to) {
  for (int64_t k = 0; k < size; k += 16)
    write(to + k, read<u32x16>(to + k) | __builtin_convertvector(dequantize(value + k, scale), u32x16) << shift);
}

// KEYS keys and values of one head, padded with zeros after the end of the context.
struct PackedBlock {
  std::vector<uint32_t> keys;    // [KEYS / 16][size / 2][16]: pairs of elements of sixteen keys
  std::vector<uint32_t> values;  // [KEYS / 2][size]: pairs of elements of two consecutive values

  template <class K>
  void fill(const PrefillAttention<K>& args, int64_t head, int64_t begin) {
    int64_t num = std::min<int64_t>(KEYS, args.context - begin), pairs = args.size / 2;
    keys.assign(KEYS * pairs, 0);
    values.assign(KEYS / 2 * args.size, 0);
    for (int64_t i = 0; i < num; i++) {
      int64_t start = args.start(head, begin + i), row = args.scale_index(head, begin + i);
      const K *key = args.keys + start, *value = args.values + start;
      store_pairs(key, scale_at(args.key_scales, row, key), args.size, &keys[i / 16 * pairs * 16 + i % 16]);
      add_shifted(value, scale_at(args.value_scales, row, value), args.size, i % 2 * 16, &values[i / 2 * args.size]);
    }
  }
};

// Computes scores [R][KEYS] for the first ``num`` keys, with ``num`` rounded up to a multiple of 32. ``q`` [pairs][R] are
// pairs of elements of the queries.
template <int R>
void score(const uint32_t* q, const uint32_t* keys, int64_t pairs, int64_t num, float scale, float* scores) {
  for (int64_t v = 0; v * 16 < num; v += 2) {
    const uint32_t *left = keys + v * pairs * 16, *right = left + pairs * 16;
    f32x16 sums[R][2] = {};
    for (int64_t k = 0; k < pairs; k++) {
      u32x16 a = read<u32x16>(left + k * 16), b = read<u32x16>(right + k * 16);
      for (int r = 0; r < R; r++) {
        sums[r][0] = dot2_bf16(sums[r][0], a, q[k * R + r]);
        sums[r][1] = dot2_bf16(sums[r][1], b, q[k * R + r]);
      }
    }
    for (int r = 0; r < R; r++)
      for (int half = 0; half < 2; half++) store(scores + r * KEYS + (v + half) * 16, sums[r][half] * scale);
  }
}

// Adds the values of the first ``num`` positions, multiplied by weights [R][KEYS], to ``to`` [R][size].
template <int R, int WIDTH>
INLINE void add_columns(const uint32_t* weights, const uint32_t* values, int64_t size, int64_t num, float* to) {
  f32x16 sums[R][WIDTH];
  for (int r = 0; r < R; r++)
    for (int i = 0; i < WIDTH; i++) sums[r][i] = load(to + r * size + i * 16);
  for (int64_t k = 0; k * 2 < num; k++) {
    u32x16 v[WIDTH];
    for (int i = 0; i < WIDTH; i++) v[i] = read<u32x16>(values + k * size + i * 16);
    for (int r = 0; r < R; r++)
      for (int i = 0; i < WIDTH; i++) sums[r][i] = dot2_bf16(sums[r][i], v[i], weights[r * (KEYS / 2) + k]);
  }
  for (int r = 0; r < R; r++)
    for (int i = 0; i < WIDTH; i++) store(to + r * size + i * 16, sums[r][i]);
}

// The queries of one head, and their softmax and sums of weighted values.
struct HeadState {
  std::vector<uint32_t> queries;       // tiles [size / 2][rows] of pairs of elements
  std::vector<OnlineSoftmax> softmax;  // [queries]
  std::vector<float> values;           // [queries][size]

  void reset(int64_t num, int64_t size) {
    queries.resize(num * size / 2);
    softmax.assign(num, {});
    values.assign(num * size, 0);
  }

  // Copies queries [i, i + rows) of a head, so that they are adjacent. In ``q``, their distance is often a multiple of
  // 4 KiB, so they would map to the same set of the L1 cache.
  void copy_queries(const bf16* q, int64_t stride, int64_t i, int64_t rows, int64_t size) {
    uint32_t* to = &queries[i * size / 2];
    for (int64_t r = 0; r < rows; r++)
      for (int64_t k = 0; k < size / 2; k++) to[k * rows + r] = read<uint32_t>(q + (i + r) * stride + 2 * k);
  }
};

// Masks those of the first ``num`` scores whose positions are outside of [first, last).
void mask(float* scores, int64_t num, int64_t first, int64_t last) {
  i32x16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t k = 0; k < num; k += 16) {
    i32x16 position = lanes + int32_t(k);
    f32x16 s = load(scores + k);
    store(scores + k, (position >= int32_t(first)) & (position < int32_t(last)) ? s : broadcast(-INFINITY));
  }
}

// Processes queries [i, i + R) for the block of keys that starts at position ``begin``.
template <int R, class K>
void process_queries(const PrefillAttention<K>& args, int64_t i, int64_t begin, const PackedBlock& packed,
                     HeadState& state) {
  int64_t num = std::min<int64_t>(KEYS, args.last(i + R - 1) - begin);
  num = (num + 31) / 32 * 32;
  alignas(64) float scores[R * KEYS];
  alignas(64) bf16 weights[R * KEYS];
  float rescale[R];
  score<R>(&state.queries[i * args.size / 2], packed.keys.data(), args.size / 2, num, args.scale, scores);
  bool is_masked = begin < args.first(i + R - 1) || begin + num > args.last(i);
  for (int r = 0; r < R; r++) {
    float* own = scores + r * KEYS;
    if (is_masked) mask(own, num, args.first(i + r) - begin, args.last(i + r) - begin);
    rescale[r] = state.softmax[i + r].raise_max(own, num, &state.values[(i + r) * args.size], args.size);
  }
  for (int r = 0; r < R; r++) {
    OnlineSoftmax& softmax = state.softmax[i + r];
    if (is_masked) softmax.add_weights(scores + r * KEYS, num, rescale[r], weights + r * KEYS);
    else softmax.add_weights<false>(scores + r * KEYS, num, rescale[r], weights + r * KEYS);
  }
  float* to = &state.values[i * args.size];
  const uint32_t *pairs = (const uint32_t*)weights, *values = packed.values.data();
  int64_t k = 0;
  for (; k + 32 <= args.size; k += 32) add_columns<R, 2>(pairs, values + k, args.size, num, to + k);
  if (k < args.size) add_columns<R, 1>(pairs, values + k, args.size, num, to + k);
}

template <class K>
using ProcessQueries = void (*)(const PrefillAttention<K>&, int64_t, int64_t, const PackedBlock&, HeadState&);

template <class K, int... R>
ProcessQueries<K> process_queries_for(int rows, std::integer_sequence<int, R...>) {
  static const ProcessQueries<K> table[] = {process_queries<R + 1, K>...};
  return table[rows - 1];
}

// Computes all query heads that use ``kv_head``, for every ``parts``-th tile of queries, starting with tile ``part``.
template <class K>
void attend(const PrefillAttention<K>& args, int64_t kv_head, int64_t part, int64_t parts) {
  int64_t per_kv = args.heads / args.kv_heads, tiles = (args.queries + QUERIES - 1) / QUERIES;
  // Each thread keeps its buffers, because new memory of this size would come from the operating system in each call.
  static thread_local std::vector<HeadState> states;
  static thread_local PackedBlock packed;
  states.resize(std::max<size_t>(states.size(), per_kv));
  for (int64_t h = 0; h < per_kv; h++) states[h].reset(args.queries, args.size);
  for (int64_t tile = part; tile < tiles; tile += parts)
    for (int64_t h = 0; h < per_kv; h++)
      states[h].copy_queries(args.q + (kv_head * per_kv + h) * args.size, args.q_stride, tile * QUERIES,
                             std::min<int64_t>(QUERIES, args.queries - tile * QUERIES), args.size);
  for (int64_t begin = args.first(0) / KEYS * KEYS; begin < args.context; begin += KEYS) {
    packed.fill(args, kv_head, begin);
    for (int64_t tile = part; tile < tiles; tile += parts) {
      int64_t i = tile * QUERIES, rows = std::min<int64_t>(QUERIES, args.queries - i);
      if (args.last(i + rows - 1) <= begin || args.first(i) >= begin + KEYS) continue;
      auto run = process_queries_for<K>(int(rows), std::make_integer_sequence<int, QUERIES>());
      for (int64_t h = 0; h < per_kv; h++) run(args, i, begin, packed, states[h]);
    }
  }
  for (int64_t i = 0; i < args.queries; i++) {
    if (i / QUERIES % parts != part) continue;
    for (int64_t h = 0; h < per_kv; h++)
      for (int64_t k = 0; k < args.size; k += 16)
        store(args.out + (i * args.heads + kv_head * per_kv + h) * args.size + k,
              load(&states[h].values[i * args.size + k]) * (1 / states[h].softmax[i].sum));
  }
}

}  // namespace

template <class K>
void team::prefill_attention(const PrefillAttention<K>& args) {
  int64_t parts = (omp_get_num_threads() + args.kv_heads - 1) / args.kv_heads;
#pragma omp for schedule(dynamic)
  for (int64_t task = 0; task < args.kv_heads * parts; task++) attend(args, task / parts, task % parts, parts);
}

template void team::prefill_attention(const PrefillAttention<bf16>&);
template void team::prefill_attention(const PrefillAttention<int8_t>&);

// ``size``, the head size, must be a multiple of 16. A ``window`` of 0 means unlimited. Scales must be null unless keys
// and values are int8.
extern "C" void prefill_attention(const void* q, int64_t q_stride, const void* keys, const void* values,
                                  int64_t block_stride, int64_t head_stride, int64_t token_stride,
                                  const float* key_scales, const float* value_scales, const int64_t* table,
                                  int64_t queries, int64_t context, int64_t heads, int64_t kv_heads, int64_t size,
                                  int64_t block_size, int64_t window, int is_causal, float scale, void* out,
                                  int threads) {
  auto run = [&](auto* stored) {
    using K = std::remove_reference_t<decltype(*stored)>;
    PrefillAttention<K> args{(const bf16*)q, (const K*)keys, (const K*)values, key_scales, value_scales, table,
                      (bf16*)out, q_stride, block_stride, head_stride, token_stride, queries, context, heads,
                      kv_heads, size, block_size, window, scale, is_causal != 0};
#pragma omp parallel num_threads(threads)
    team::prefill_attention(args);
  };
  bf16* as_bf16 = nullptr;
  int8_t* as_int8 = nullptr;
  if (key_scales) run(as_int8);
  else run(as_bf16);
}
#endif
