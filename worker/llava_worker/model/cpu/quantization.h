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
  int64_t panels() const { return (outputs + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS; }
};

// The scales of 4-bit or 5-bit weights. ``groups`` is the number of groups in a row.
INLINE f32x16 group_scale(const QuantizedWeight& w, int groups, int64_t panel, int g, int half) {
  return load((const bf16*)w.scales + (panel * groups + g) * PANEL_OUTPUTS + half * 16);
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

// Unpacks the 4-bit or 5-bit weights of a panel to the layout of 8-bit weights, ``to`` [padded / 4][32][4].
template <int BITS>
inline void unpack_panel(const QuantizedWeight& w, const ValueTables& value_tables, int64_t panel, uint8_t* to) {
  const ValueTables tables = value_tables;
  const uint8_t* group = w.packed + panel * w.padded * PANEL_OUTPUTS * BITS / 8;
  for (int g = 0; g < w.groups(); g++, group += WEIGHT_GROUP * PANEL_OUTPUTS * BITS / 8)
    for (int step = 0; step < WEIGHT_GROUP / 4; step++, to += 128) {
      u8x64 first, second;
      load_weights<BITS>(group, step, tables, first, second);
      write(to, first);
      write(to + 64, second);
    }
}

// The codes of a group have this scale. Their sum is a by-product of quantization.
struct GroupSummary {
  float scale;
  int32_t sum;
};

// Quantizes the inputs x [size] of a group, and pads the codes with zeros to ``padded``.
template <class T>
INLINE GroupSummary quantize_group(const T* x, int64_t size, int64_t padded, int8_t* codes) {
  u32x16 lane_max{};  // bits of magnitudes, which have the same order as the magnitudes
  for_each_16(size, [&](int64_t k, int count) {
    u32x16 bits = (u32x16)absolute(load_up_to(x + k, count));
    lane_max = bits > lane_max ? bits : lane_max;
  });
  float max_abs = bits_to_float(horizontal_max(lane_max)), factor = max_abs > 0 ? 127.0f / max_abs : 0.0f;
  i32x16 total{};
  for_each_16(size, [&](int64_t k, int count) {
    i32x16 rounded = round_to_int(load_up_to(x + k, count) * factor);
    write(codes + k, to_int8(rounded));
    total += rounded;
  });
  int64_t done = (size + 15) / 16 * 16;
  if (done < padded) std::memset(codes + done, 0, padded - done);
  float scale = max_abs / 127.0f;
  return {scale + (scale - scale), horizontal_sum(total)};  // NaN if an input is infinite or NaN
}

// Quantizes group g of a row of x, and stores its codes and scale. Also stores the offset that accumulators start at,
// -WEIGHT_OFFSET times the sum of the codes. Returns the number of codes.
template <class T>
INLINE int64_t quantize_group(const T* x, int64_t size, const QuantizedWeight& w, int g, int8_t* codes, float& scale,
                              int32_t& offset) {
  int64_t first = int64_t(g) * w.group_size, padded = std::min<int64_t>(w.group_size, w.padded - first);
  int64_t inputs = std::max<int64_t>(0, std::min(padded, size - first));
  GroupSummary summary = quantize_group(x + first, inputs, padded, codes);
  scale = summary.scale;
  offset = -WEIGHT_OFFSET * summary.sum;
  return padded;
}

// Quantizes a row of x to codes [padded], with one scale and one offset per group.
template <class T>
void quantize_row(const T* x, int64_t size, const QuantizedWeight& w, int8_t* codes, float* scales, int32_t* offsets) {
  for (int g = 0; g < w.groups(); g++) codes += quantize_group(x, size, w, g, codes, scales[g], offsets[g]);
}

// Up to 16 outputs of a panel: the first or the second half. The outputs of a row are its sums, multiplied by the scales
// of the weight unless they were applied to groups, plus the bias.
template <bool HAS_GROUP_SCALES>
struct OutputHalf {
  int64_t first;
  int count;
  f32x16 scale, bias_values;

  INLINE OutputHalf(const QuantizedWeight& w, const float* bias, int64_t panel, int half)
      : first(panel * PANEL_OUTPUTS + half * 16), count(int(std::min<int64_t>(16, w.outputs - first))) {
    if (count <= 0) return;
    scale = HAS_GROUP_SCALES ? broadcast(1) : load_up_to((const float*)w.scales + first, count);
    bias_values = bias ? load_up_to(bias + first, count) : f32x16{};
  }

  template <class T>
  INLINE void store_row(f32x16 sums, T* row) const {
    if (count > 0) store_up_to(row + first, sums * scale + bias_values, count);
  }
};
