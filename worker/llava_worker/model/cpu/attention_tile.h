// Scores and weighted values for a tile: a few positions of one KV head, and all queries that attend to them.
//
// Each key and value is read from memory only once. The arithmetic for a query does not depend on the other queries.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

constexpr int TOKENS = 16;  // positions in a tile; with blocks of this size, its keys are adjacent in memory

// The type to which queries and the weights of values are converted: bf16 if T and K are bf16 and the CPU has an
// instruction for bf16 dot products, otherwise fp32.
template <class T, class K>
struct OperandType {
  using type = float;
};

// SIZE is the head size if it is known when the kernels are compiled, otherwise 0.
template <int64_t SIZE>
struct Tile {
  int64_t starts[TOKENS];  // offsets of the keys, and of the values; the last one is repeated
  int64_t ahead[TOKENS];   // offsets in the tile that is processed next, for prefetches
  int64_t num, dynamic_size;

  int64_t size() const { return SIZE ? SIZE : dynamic_size; }
};

// Explicit prefetches are necessary because hardware prefetchers stop at page boundaries, and a tile is about one page
// long. Prefetches into the L1 cache are faster than those into the L2 cache.
template <class K>
INLINE void prefetch(const K* from, int64_t size) {
  for (int64_t i = 0; i < size * int64_t(sizeof(K)); i += 64) __builtin_prefetch((const char*)from + i);
}

// sums[j] = q . keys[j], in sixteen parts
template <class K>
INLINE void dot4(const float* q, const K* const* keys, int64_t size, f32x16* sums) {
  for (int64_t k = 0; k < size; k += 16)
    for (int j = 0; j < 4; j++) sums[j] += load(q + k) * load(keys[j] + k);
}

#ifdef __AVX512BF16__
template <>
struct OperandType<bf16, bf16> {
  using type = bf16;
};

INLINE void dot4(const bf16* q, const bf16* const* keys, int64_t size, f32x16* sums) {
  auto add = [&](int j, const __m512i two, const __m512i other) {
    sums[j] = (f32x16)_mm512_dpbf16_ps((__m512)sums[j], (__m512bh)two, (__m512bh)other);
  };
  int64_t k = 0;
  for (; k + 32 <= size; k += 32)
    for (int j = 0; j < 4; j++) add(j, _mm512_loadu_si512(q + k), _mm512_loadu_si512(keys[j] + k));
  constexpr __mmask32 HALF = 0xffff;
  if (k < size)
    for (int j = 0; j < 4; j++)
      add(j, _mm512_maskz_loadu_epi16(HALF, q + k), _mm512_maskz_loadu_epi16(HALF, keys[j] + k));
}
#endif

// scores[r][i] = queries[r] . keys[i]. Scores of positions from tile.num onward are -infinity.
template <class Q, class K, int64_t SIZE>
INLINE void score(const Q* queries, int64_t count, const K* keys, const Tile<SIZE>& tile, float* scores) {
  int64_t size = tile.size();
  for (int64_t i = 0; i < tile.num; i += 4) {
    const K* four[4];
    for (int j = 0; j < 4; j++) {
      four[j] = keys + tile.starts[i + j];
      prefetch(keys + tile.ahead[i + j], size);
    }
    for (int64_t r = 0; r < count; r++) {
      f32x16 sums[4] = {};
      dot4(queries + r * size, four, size, sums);
      write(scores + r * TOKENS + i, horizontal_sums(sums));
    }
  }
  if (tile.num < TOKENS)
    for (int64_t r = 0; r < count; r++) std::fill(scores + r * TOKENS + tile.num, scores + (r + 1) * TOKENS, -INFINITY);
}

// to += p[0] * values[0] + p[1] * values[1] + ..., with up to 128 sums in registers.
template <int LANES, class K, int64_t SIZE>
INLINE void add_columns(float* to, const float* p, const K* values, const Tile<SIZE>& tile) {
  f32x16 sums[LANES];
  for (int i = 0; i < LANES; i++) sums[i] = load(to + i * 16);
  for (int64_t token = 0; token < tile.num; token++) {
    prefetch(values + tile.ahead[token], LANES * 16);
    for (int i = 0; i < LANES; i++) sums[i] += load(values + tile.starts[token] + i * 16) * p[token];
  }
  for (int i = 0; i < LANES; i++) store(to + i * 16, sums[i]);
}

// The sums of weighted values, stored in dimension order.
template <class T, class K>
struct InOrder {
  // sums[r] += p[r][0] * values[0] + p[r][1] * values[1] + ...
  template <class P, int64_t SIZE>
  static void add(float* sums, int64_t count, const P* p, const K* values, const Tile<SIZE>& tile) {
    for (int64_t r = 0; r < count; r++) {
      float weights[TOKENS], *to = sums + r * tile.size();
      for (int i = 0; i < TOKENS; i += 16) store(weights + i, load(p + r * TOKENS + i));
      int64_t k = 0;
      for (; k + 128 <= tile.size(); k += 128) add_columns<8>(to + k, weights, values + k, tile);
      for (; k < tile.size(); k += 16) add_columns<1>(to + k, weights, values + k, tile);
    }
  }
  static void store_result(T* out, const float* sums, float factor, int64_t size) {
    for (int64_t k = 0; k < size; k += 16) store(out + k, load(sums + k) * factor);
  }
};

template <class T, class K>
struct ValueSums : InOrder<T, K> {};

#ifdef __AVX512BF16__
// The same sum for R queries and WIDTH * 32 dimensions, two tokens at a time. Weights from tile.num onward must be 0.
template <int R, int WIDTH, int64_t SIZE>
INLINE void add_pairs(float* to, const bf16* p, const bf16* values, const Tile<SIZE>& tile) {
  f32x16 sums[R][WIDTH][2];
  for (int r = 0; r < R; r++)
    for (int i = 0; i < WIDTH * 2; i++) sums[r][i / 2][i % 2] = load(to + r * tile.size() + i * 16);
  for (int64_t token = 0; token < tile.num; token += 2) {
    for (int j = 0; j < 2; j++) prefetch(values + tile.ahead[token + j], WIDTH * 32);
    for (int i = 0; i < WIDTH; i++) {
      __m512i a = _mm512_loadu_si512(values + tile.starts[token] + i * 32);
      __m512i b = _mm512_loadu_si512(values + tile.starts[token + 1] + i * 32);
      u32x16 low = (u32x16)_mm512_unpacklo_epi16(a, b), high = (u32x16)_mm512_unpackhi_epi16(a, b);
      for (int r = 0; r < R; r++) {
        uint32_t both = read<uint32_t>(p + r * TOKENS + token);
        sums[r][i][0] = dot2_bf16(sums[r][i][0], low, both);
        sums[r][i][1] = dot2_bf16(sums[r][i][1], high, both);
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int i = 0; i < WIDTH * 2; i++) store(to + r * tile.size() + i * 16, sums[r][i / 2][i % 2]);
}

// When the values of two tokens are interleaved, the first four of every eight elements end up in one vector and the
// other four in a second vector. The sums are stored in this order until store_result restores dimension order.
template <>
struct ValueSums<bf16, bf16> {
  template <int64_t SIZE>
  static void add(float* sums, int64_t count, const bf16* p, const bf16* values, const Tile<SIZE>& tile) {
    int64_t size = tile.size(), r = 0;
    if (size % 32) return InOrder<bf16, bf16>::add(sums, count, p, values, tile);
    for (; r + 4 <= count; r += 4) add_rows<4, 2>(sums + r * size, p + r * TOKENS, values, tile);
    for (; r < count; r++) add_rows<1, 4>(sums + r * size, p + r * TOKENS, values, tile);
  }
  template <int R, int WIDTH, int64_t SIZE>
  static void add_rows(float* to, const bf16* p, const bf16* values, const Tile<SIZE>& tile) {
    int64_t k = 0;
    for (; k + WIDTH * 32 <= tile.size(); k += WIDTH * 32) add_pairs<R, WIDTH>(to + k, p, values + k, tile);
    for (; k < tile.size(); k += 32) add_pairs<R, 1>(to + k, p, values + k, tile);
  }
  static void store_result(bf16* out, const float* sums, float factor, int64_t size) {
    if (size % 32) return InOrder<bf16, bf16>::store_result(out, sums, factor, size);
    const __m512i order = _mm512_set_epi16(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8, 23, 22, 21, 20,
                                           7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    for (int64_t k = 0; k < size; k += 32) {
      __m512 first = (__m512)(load(sums + k) * factor), others = (__m512)(load(sums + k + 16) * factor);
      __m512i both = (__m512i)_mm512_cvtne2ps_pbh(others, first);
      _mm512_storeu_si512(out + k, _mm512_permutexvar_epi16(order, both));
    }
  }
};
#endif
