// The format of quantized weights, and functions that quantize x to 8 bits and scale the outputs.
#pragma once

#include <algorithm>

#include "simd.h"

constexpr int PANEL_OUTPUTS = 32;
constexpr int WEIGHT_GROUP = 64;     // inputs per scale of 4-bit and 5-bit weights
constexpr int MAX_GROUP = 256;       // maximum number of inputs per scale of x
constexpr int WEIGHT_OFFSET = 128;   // added to the values of weights, which makes them unsigned
constexpr int NIBBLE_BYTES = WEIGHT_GROUP * PANEL_OUTPUTS / 2;  // low four bits of the codes of a group in a panel

struct QuantizedWeight {
  const uint8_t* packed;
  const void* scales;  // 8 bits: fp32 [outputs]; 4 and 5 bits: bf16 [panels][groups][32]
  const int8_t* codebook;  // 8 bits: null; 4 and 5 bits: the values of the codes
  int64_t outputs, padded;  // padded: number of inputs including padding, a multiple of 64
  int group_size;           // inputs per scale of x; the last group may be smaller
  int groups() const { return int((padded + group_size - 1) / group_size); }
};

inline f32x16 group_scale(const QuantizedWeight& w, int64_t panel, int g, int half) {  // for 4-bit and 5-bit weights
  return load((const bf16*)w.scales + (panel * w.groups() + g) * PANEL_OUTPUTS + half * 16);
}

// The codebook plus WEIGHT_OFFSET, as tables for `look_up`: values 0 to 15, and 16 to 31.
struct ValueTables {
  u8x64 low{}, high{};
};

template <int BITS>
INLINE ValueTables value_tables(const QuantizedWeight& w) {
  ValueTables tables;
  if constexpr (BITS != 8)
    for (int i = 0; i < 64; i++) {
      tables.low[i] = uint8_t(w.codebook[i % 16] + WEIGHT_OFFSET);
      if constexpr (BITS == 5) tables.high[i] = uint8_t(w.codebook[16 + i % 16] + WEIGHT_OFFSET);
    }
  return tables;
}

// Loads the weights of a panel for four consecutive inputs, plus WEIGHT_OFFSET: outputs 0 to 15, and 16 to 31.
// ``group`` contains the weights of a group of inputs, and ``step`` selects four inputs of the group.
template <int BITS>
INLINE void load_weights(const uint8_t* group, int64_t step, const ValueTables& tables, u8x64& first, u8x64& second) {
  if constexpr (BITS == 8) {
    first = read<u8x64>(group + step * 128);
    second = read<u8x64>(group + step * 128 + 64);
    return;
  }
  u8x64 both = read<u8x64>(group + step * 64), low = both & 15, high = both >> 4;
  if constexpr (BITS == 4) {
    first = look_up(tables.low, low);
    second = look_up(tables.low, high);
  } else {
    const uint8_t* fifth_bits = group + NIBBLE_BYTES + step * 16;
    first = look_up(tables.low, tables.high, low, read<uint64_t>(fifth_bits));
    second = look_up(tables.low, tables.high, high, read<uint64_t>(fifth_bits + 8));
  }
}

// Quantizes the inputs x [size] of a group, and pads the codes with zeros to ``padded``. Returns the scale.
template <class T>
float quantize_group(const T* x, int64_t size, int64_t padded, int8_t* codes) {
  f32x16 lane_max{}, non_finite{};
  int64_t full = size / 16 * 16;
  int rest = int(size - full);
  auto scan = [&](f32x16 v) {
    lane_max = maximum(absolute(v), lane_max);
    non_finite += v - v;  // NaN if v is infinite or NaN, which makes the scale NaN; otherwise 0
  };
  for (int64_t k = 0; k < full; k += 16) scan(load(x + k));
  if (rest) scan(load_partial(x + full, rest));
  float max_abs = horizontal_max(lane_max);
  float factor = max_abs > 0 ? 127.0f / max_abs : 0.0f;
  auto store_codes = [&](int64_t k, f32x16 v) { write(codes + k, to_int8(round_to_int(v * factor))); };
  for (int64_t k = 0; k < full; k += 16) store_codes(k, load(x + k));
  if (rest) store_codes(full, load_partial(x + full, rest));
  int64_t done = (size + 15) / 16 * 16;
  if (done < padded) std::memset(codes + done, 0, padded - done);
  return max_abs / 127.0f + horizontal_sum(non_finite);
}

// Quantizes group g of a row of x, and stores its codes, scale and sum. Returns the number of codes.
template <class T>
int64_t quantize_group(const T* x, int64_t size, const QuantizedWeight& w, int g, int8_t* codes, float& scale,
                       int32_t& sum) {
  int64_t first = int64_t(g) * w.group_size, padded = std::min<int64_t>(w.group_size, w.padded - first);
  int64_t inputs = std::max<int64_t>(0, std::min(padded, size - first));
  scale = quantize_group(x + first, inputs, padded, codes);
  int32_t total = 0;
  for (int64_t k = 0; k < padded; k++) total += codes[k];
  sum = total;
  return padded;
}

// Quantizes a row of x to codes [padded], with one scale and one sum per group.
template <class T>
void quantize_row(const T* x, int64_t size, const QuantizedWeight& w, int8_t* codes, float* scales, int32_t* sums) {
  for (int g = 0; g < w.groups(); g++) codes += quantize_group(x, size, w, g, codes, scales[g], sums[g]);
}

// Stores up to 16 outputs of a row, starting at ``first``. They are the sums, multiplied by the scales of the weight
// (8 bits only), plus the bias.
template <int BITS, class T>
INLINE void store_outputs(const QuantizedWeight& w, int64_t first, f32x16 sums, const float* bias, T* row) {
  int count = int(std::min<int64_t>(16, w.outputs - first));
  if (count <= 0) return;
  f32x16 bias_values = bias ? load_partial(bias + first, count) : f32x16{};
  f32x16 scale = BITS == 8 ? load_partial((const float*)w.scales + first, count) : broadcast(1);
  f32x16 v = sums * scale + bias_values;
  if (count == 16) store(row + first, v);
  else store_partial(row + first, v, count);
}
