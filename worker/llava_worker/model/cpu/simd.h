// 16-lane SIMD vectors for AVX-512 and AVX2.
//
// They are based on GCC's vector extensions. For AVX2, GCC splits each vector into two. This file only wraps
// instructions that the vector extensions cannot express.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define INLINE inline __attribute__((always_inline))

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));

struct bf16 {
  uint16_t bits;
};

template <class V, class T>
INLINE V read(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
INLINE void write(T* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

INLINE f32x16 broadcast(float x) { return f32x16{} + x; }

// --- loads and stores, fp32 or bf16 ---

INLINE f32x16 load(const float* from) { return read<f32x16>(from); }

INLINE f32x16 load(const bf16* from) {
  return (f32x16)(__builtin_convertvector(read<u16x16>(from), u32x16) << 16);
}

INLINE f32x16 load(const int8_t* from) {
  __m128i bytes = read<__m128i>(from);
#ifdef __AVX512F__
  return (f32x16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
  __m256i low = _mm256_cvtepi8_epi32(bytes), high = _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8));
  __m256 both[2] = {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
  return read<f32x16>(both);
#endif
}

INLINE u16x16 to_bf16(f32x16 v) {
#ifdef __AVX512BF16__
  return (u16x16)_mm512_cvtneps_pbh((__m512)v);
#else
  u32x16 bits = (u32x16)v;
  u32x16 nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  u32x16 quiet = (bits >> 16) | 0x40;
  i32x16 is_nan = v != v;
  return __builtin_convertvector(((u32x16)is_nan & quiet) | (~(u32x16)is_nan & nearest), u16x16);
#endif
}

INLINE void store(float* to, f32x16 v) { write(to, v); }
INLINE void store(bf16* to, f32x16 v) { write(to, to_bf16(v)); }

// Rounds to the type of the pointer's elements and converts back to fp32, as torch does between operations.
INLINE f32x16 round_to_type(const float*, f32x16 v) { return v; }
INLINE f32x16 round_to_type(const bf16*, f32x16 v) {
  return (f32x16)(__builtin_convertvector(to_bf16(v), u32x16) << 16);
}

template <class T>
INLINE f32x16 load_partial(const T* from, int count) {  // lanes from count onward are 0
  T lanes[16] = {};
  std::memcpy(lanes, from, count * sizeof(T));
  return load(lanes);
}

template <class T>
INLINE void store_partial(T* to, f32x16 v, int count) {
  T lanes[16];
  store(lanes, v);
  std::memcpy(to, lanes, count * sizeof(T));
}

template <class F>
INLINE void for_each_16(int64_t size, F f) {  // f(first, count)
  int64_t k = 0;
  for (; k + 16 <= size; k += 16) f(k, 16);
  if (k < size) f(k, int(size - k));
}

template <class T>
INLINE f32x16 load_up_to(const T* from, int count) {
  return count == 16 ? load(from) : load_partial(from, count);
}

template <class T>
INLINE void store_up_to(T* to, f32x16 v, int count) {
  if (count == 16) store(to, v);
  else store_partial(to, v, count);
}

INLINE float bits_to_float(uint32_t bits) { return read<float>(&bits); }
INLINE float to_float(const float* from) { return *from; }
INLINE float to_float(const bf16* from) { return bits_to_float(uint32_t(from->bits) << 16); }

// --- arithmetic ---

// a > b ? a : b, so the result is b if either of them is NaN. GCC does not find the instruction for this.
INLINE f32x16 maximum(f32x16 a, f32x16 b) {
#ifdef __AVX512F__
  return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

INLINE f32x16 minimum(f32x16 a, f32x16 b) {  // a < b ? a : b
#ifdef __AVX512F__
  return (f32x16)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}

INLINE f32x16 absolute(f32x16 v) { return (f32x16)((u32x16)v & 0x7fffffffu); }

// Rounds to the nearest integer, ties to even.
INLINE i32x16 round_to_int(f32x16 v) {
#ifdef __AVX512F__
  return (i32x16)_mm512_cvtps_epi32((__m512)v);
#else
  __m256 halves[2];
  std::memcpy(halves, &v, sizeof halves);
  __m256i whole[2] = {_mm256_cvtps_epi32(halves[0]), _mm256_cvtps_epi32(halves[1])};
  return read<i32x16>(whole);
#endif
}

// Converts integers, which must be in the range of int8.
INLINE i8x16 to_int8(i32x16 v) {
#ifdef __AVX512F__
  return (i8x16)_mm512_cvtepi32_epi8((__m512i)v);
#else
  return __builtin_convertvector(v, i8x16);
#endif
}

// Replaces each index, from 0 to 15, with table[index]. A table is four copies of 16 bytes.
INLINE u8x64 look_up(u8x64 table, u8x64 indices) {
#ifdef __AVX512BW__
  return (u8x64)_mm512_shuffle_epi8((__m512i)table, (__m512i)indices);
#else
  __m256i tables[2], halves[2];
  std::memcpy(tables, &table, sizeof tables);
  std::memcpy(halves, &indices, sizeof halves);
  for (int i = 0; i < 2; i++) halves[i] = _mm256_shuffle_epi8(tables[i], halves[i]);
  return read<u8x64>(halves);
#endif
}

// Replaces each index with low[index], or with high[index] if the bit of ``is_high`` for this index is set.
INLINE u8x64 look_up(u8x64 low, u8x64 high, u8x64 indices, uint64_t is_high) {
#ifdef __AVX512BW__
  __m512i from_low = _mm512_shuffle_epi8((__m512i)low, (__m512i)indices);
  return (u8x64)_mm512_mask_shuffle_epi8(from_low, is_high, (__m512i)high, (__m512i)indices);
#else
  __m256i from_low[2], from_high[2];
  u8x64 all_low = look_up(low, indices), all_high = look_up(high, indices);
  std::memcpy(from_low, &all_low, sizeof from_low);
  std::memcpy(from_high, &all_high, sizeof from_high);
  // Copies the byte that contains the bit of each index, and then tests the bit.
  const __m256i byte = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201u));
  for (int i = 0; i < 2; i++) {
    __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(int32_t(is_high >> 32 * i)), byte);
    __m256i mask = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    from_low[i] = _mm256_blendv_epi8(from_low[i], from_high[i], mask);
  }
  return read<u8x64>(from_low);
#endif
}

struct Halves {
  __m256 low, high;
};

INLINE Halves halves_of(f32x16 v) {
#ifdef __AVX512F__
  return {_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1)};
#else
  return read<Halves>(&v);
#endif
}

INLINE float horizontal_sum(f32x16 v) {
  Halves halves = halves_of(v);
  __m256 eight = _mm256_add_ps(halves.low, halves.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Returns the horizontal sums of four vectors.
INLINE __m128 horizontal_sums(const f32x16* v) {
  __m256 eight[4];
  for (int i = 0; i < 4; i++) {
    Halves halves = halves_of(v[i]);
    eight[i] = _mm256_add_ps(halves.low, halves.high);
  }
  __m256 first = _mm256_hadd_ps(eight[0], eight[1]), second = _mm256_hadd_ps(eight[2], eight[3]);
  __m256 four = _mm256_hadd_ps(first, second);
  return _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
}

// Whether any lane of v is greater than x.
INLINE bool any_greater(f32x16 v, float x) {
#ifdef __AVX512F__
  return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(x), _CMP_GT_OQ);
#else
  Halves halves = halves_of(v);
  return _mm256_movemask_ps(_mm256_cmp_ps(_mm256_max_ps(halves.low, halves.high), _mm256_set1_ps(x), _CMP_GT_OQ));
#endif
}

INLINE float horizontal_max(f32x16 v) {  // no lane can be NaN
  Halves halves = halves_of(v);
  __m256 eight = _mm256_max_ps(halves.low, halves.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

INLINE uint32_t horizontal_max(u32x16 v) {
#ifdef __AVX512F__
  return _mm512_reduce_max_epu32((__m512i)v);
#else
  __m256i halves[2];
  std::memcpy(halves, &v, sizeof halves);
  __m256i eight = _mm256_max_epu32(halves[0], halves[1]);
  __m128i four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  __m128i two = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
  return uint32_t(_mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32(two, 0xb1))));
#endif
}

INLINE int32_t horizontal_sum(i32x16 v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  __m256i halves[2];
  std::memcpy(halves, &v, sizeof halves);
  __m256i eight = _mm256_add_epi32(halves[0], halves[1]);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
#endif
}

// Computes e^x for x up to 88 with an error of at most 2 ULP, as 2^n times a polynomial for half an octave on either side
// of 0.
INLINE f32x16 approx_exp_up_to_88(f32x16 x) {
  x = maximum(broadcast(-87.0f), x);  // a NaN stays NaN
  f32x16 octaves = x * 1.44269504088896341f;
#ifdef __AVX512F__
  f32x16 whole = (f32x16)_mm512_roundscale_ps((__m512)octaves, 0);
#else
  i32x16 n = round_to_int(octaves);
  f32x16 whole = __builtin_convertvector(n, f32x16);
#endif
  f32x16 r = x - whole * 0.693359375f;
  r = r - whole * -2.12194440e-4f;
  f32x16 p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
#ifdef __AVX512F__
  return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  return p * (f32x16)((n + 127) << 23);
#endif
}

INLINE f32x16 approx_exp(f32x16 x) { return approx_exp_up_to_88(minimum(broadcast(88.0f), x)); }

// acc[i] += w[4i] a[0] + ... + w[4i + 3] a[3], for unsigned bytes ``w`` and the four signed bytes of ``a``.
INLINE i32x16 dot4_u8_s8(i32x16 acc, u8x64 w, int32_t a) {
#ifdef __AVX512VNNI__
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#else
  // This uses 16-bit products, because AVX2's instruction for byte products (vpmaddubsw) saturates.
  __m256i both = _mm256_set1_epi32(a), halves[2], sums[2];
  __m256i odd = _mm256_srai_epi16(both, 8), even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8);
  std::memcpy(halves, &w, sizeof halves);
  std::memcpy(sums, &acc, sizeof sums);
  for (int i = 0; i < 2; i++) {
    __m256i low = _mm256_madd_epi16(_mm256_and_si256(halves[i], _mm256_set1_epi16(0xff)), even);
    __m256i high = _mm256_madd_epi16(_mm256_srli_epi16(halves[i], 8), odd);
    sums[i] = _mm256_add_epi32(sums[i], _mm256_add_epi32(low, high));
  }
  std::memcpy(&acc, sums, sizeof acc);
  return acc;
#endif
}

// acc[i] += p[2i] a[0] + p[2i + 1] a[1], for bf16 values, two per lane.
INLINE f32x16 dot2_bf16(f32x16 acc, u32x16 p, uint32_t a) {
#ifdef __AVX512BF16__
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)p, (__m512bh)_mm512_set1_epi32(int(a)));
#else
  u32x16 both = u32x16{} + a;
  acc += (f32x16)(p << 16) * (f32x16)(both << 16);
  return acc + (f32x16)(p & 0xffff0000u) * (f32x16)(both & 0xffff0000u);
#endif
}
