// Computes attention for one query per row, reading the paged KV cache in place.
//
// Each task processes some of the KV heads of some rows. It iterates over the context, TOKENS positions at a time, and
// computes scores, online softmax and weighted values. Keys and values are read from memory only once, even if several
// rows of the task have them in common, for example those of an image. The result for a row does not depend on the other
// rows.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <vector>

#include "attention_tile.h"
#include "online_softmax.h"
#include "team_kernels.h"

namespace {

constexpr int64_t MAX_ROWS = 16;  // in a task, so that the sums of weighted values stay in the L2 cache
constexpr int64_t COMMON_SIZE = 128;  // the most common head size, for which there is a faster kernel

template <class T>
INLINE float scale_of(const float*, int64_t, const T*) { return 1.0f; }
INLINE float scale_of(const float* scales, int64_t index, const int8_t*) { return scales[index]; }

// KV heads [first, last) of ``num_rows`` rows, and the query heads that use them.
template <class T, class K, int64_t SIZE>
struct Task {
  const DecodeAttention<T, K>& args;
  const int64_t* rows;  // sorted by their block tables
  int64_t num_rows, first, last;
  int64_t per_kv = args.heads / args.kv_heads, count = (last - first) * num_rows * per_kv;
  using Operand = typename OperandType<T, K>::type;
  // Queries are in the order [KV heads][rows][query heads of the KV head].
  std::vector<Operand> queries = std::vector<Operand>(count * args.size);
  std::vector<float> sums = std::vector<float>(count * args.size);  // of values, weighted by e^(score - max)
  std::vector<OnlineSoftmax> softmax = std::vector<OnlineSoftmax>(count);
  std::vector<float> scores = std::vector<float>(num_rows * per_kv * TOKENS);
  std::vector<Operand> weights = std::vector<Operand>(num_rows * per_kv * TOKENS);

  void attend() {
    for (int64_t i = 0; i < count; i++) {
      const T* q = args.q + row_of(i) * args.q_stride + head_of(i) * args.size;
      for (int64_t k = 0; k < args.size; k += 16) store(&queries[i * args.size + k], load(q + k));
    }
    process(0, num_rows, args.begin(rows[0]));
    for (int64_t i = 0; i < count; i++) {
      T* out = args.out + (row_of(i) * args.heads + head_of(i)) * args.size;
      ValueSums<T, K>::store_result(out, &sums[i * args.size], 1 / softmax[i].sum, args.size);
    }
  }

  int64_t row_of(int64_t query) const { return rows[query / per_kv % num_rows]; }
  int64_t head_of(int64_t query) const { return (first + query / per_kv / num_rows) * per_kv + query % per_kv; }

  // Processes rows [from, to) of the task, which share all blocks before ``position``.
  void process(int64_t from, int64_t to, int64_t position) {
    if (to - from == 1) {
      for (int64_t end = args.contexts[rows[from]]; position < end; position += TOKENS)
        process_tile(from, to, position, std::min<int64_t>(TOKENS, end - position));
      return;
    }
    for (; share_tile(from, to, position); position += TOKENS) process_tile(from, to, position, TOKENS);
    for (int64_t next; from < to; from = next) {
      for (next = from + 1; next < to && share_tile(from, next + 1, position);) next++;
      process(from, next, position);
    }
  }

  // Returns whether rows [from, to) all attend to the same TOKENS slots, beginning at ``position``.
  bool share_tile(int64_t from, int64_t to, int64_t position) const {
    int64_t first_block = position / args.block_size, end = (position + TOKENS - 1) / args.block_size + 1;
    const int64_t* table = args.table(rows[from]);
    return std::all_of(rows + from, rows + to, [&](int64_t row) {
      return position + TOKENS <= args.contexts[row] &&
             std::equal(table + first_block, table + end, args.table(row) + first_block);
    });
  }

  // Processes ``num`` positions for rows [from, to) of the task.
  void process_tile(int64_t from, int64_t to, int64_t position, int64_t num) {
    Tile<SIZE> tile{{}, {}, num, args.size};
    int64_t next[TOKENS], left = args.contexts[rows[from]] - position - num;
    locate(rows[from], position, num, tile.starts);
    locate(rows[from], left ? position + num : position, left ? std::min<int64_t>(TOKENS, left) : num, next);
    int64_t head_stride = args.block_size * tile.size(), row_queries = (to - from) * per_kv;
    for (int64_t kv = 0; kv < last - first; kv++) {
      bool is_last = kv + 1 == last - first;
      for (int64_t i = 0; i < TOKENS; i++) tile.ahead[i] = is_last ? next[i] : tile.starts[i] + head_stride;
      int64_t query = (kv * num_rows + from) * per_kv;
      score(&queries[query * tile.size()], row_queries, args.keys, tile, scores.data());
      weigh(query, row_queries, tile);
      ValueSums<T, K>::add(&sums[query * tile.size()], row_queries, weights.data(), args.values, tile);
      for (int64_t& start : tile.starts) start += head_stride;
    }
  }

  // Computes the weights of the values in the tile for ``num`` queries.
  INLINE void weigh(int64_t query, int64_t num, const Tile<SIZE>& tile) {
    float key_scales[TOKENS], value_scales[TOKENS];
    for (int64_t i = 0; i < TOKENS; i++) {
      key_scales[i] = scale_of(args.key_scales, tile.starts[i] / tile.size(), args.keys) * args.scale;
      value_scales[i] = scale_of(args.value_scales, tile.starts[i] / tile.size(), args.values);
    }
    for (int64_t r = 0; r < num; r++) {
      float* own = &scores[r * TOKENS];
      Operand* p = &weights[r * TOKENS];
      store(own, load(own) * load(key_scales));
      softmax[query + r].update(own, TOKENS, p, &sums[(query + r) * tile.size()], tile.size());
      if (std::is_same_v<K, int8_t>) store(p, load(p) * load(value_scales));
    }
  }

  // Stores the offsets of ``num`` keys of the first head. The last one is repeated.
  void locate(int64_t row, int64_t position, int64_t num, int64_t* starts) const {
    for (int64_t i = 0; i < TOKENS; i++)
      starts[i] = args.index(row, position + std::min(i, num - 1), first) * args.size;
  }
};

// All rows, sorted by their block tables, so that rows that share blocks are adjacent. Group g ends before ends[g]. The
// rows of a group begin at the same position of the same block.
struct Groups {
  std::vector<int64_t> rows, ends;

  template <class T, class K>
  Groups(const DecodeAttention<T, K>& args, int64_t max_rows) : rows(args.rows) {
    std::iota(rows.begin(), rows.end(), 0);
    auto end = [&](int64_t row) { return args.table(row) + (args.contexts[row] - 1) / args.block_size + 1; };
    std::sort(rows.begin(), rows.end(), [&](int64_t a, int64_t b) {
      return std::lexicographical_compare(args.table(a), end(a), args.table(b), end(b));
    });
    for (int64_t i = 1, start = 0; i <= args.rows; i++) {
      bool is_end = i == args.rows || i - start == max_rows || *args.table(rows[i]) != *args.table(rows[i - 1]) ||
                    args.begin(rows[i]) != args.begin(rows[i - 1]);
      if (is_end) ends.push_back(start = i);
    }
  }
};

}  // namespace

template <class T, class K>
void team::decode_attention(const DecodeAttention<T, K>& args) {
  int64_t min_tasks = 2 * omp_get_num_threads();  // so that threads finish at about the same time
  Groups groups(args, std::clamp<int64_t>(args.rows * args.kv_heads / min_tasks, 1, MAX_ROWS));
  int64_t num_groups = groups.ends.size();
  int64_t parts = std::min(args.kv_heads, (min_tasks + num_groups - 1) / num_groups);
#pragma omp for schedule(dynamic)
  for (int64_t task = 0; task < num_groups * parts; task++) {
    int64_t group = task / parts, part = task % parts, start = group ? groups.ends[group - 1] : 0;
    int64_t first = args.kv_heads * part / parts, last = args.kv_heads * (part + 1) / parts;
    const int64_t *rows = &groups.rows[start], num_rows = groups.ends[group] - start;
    if (args.size == COMMON_SIZE) Task<T, K, COMMON_SIZE>{args, rows, num_rows, first, last}.attend();
    else Task<T, K, 0>{args, rows, num_rows, first, last}.attend();
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
