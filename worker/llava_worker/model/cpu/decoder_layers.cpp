// Computes all layers of a decoder for the rows of a step: the next tokens of sequences, and prompts.
//
// With few rows, a layer takes less than a millisecond. Separate calls for its operations would start a parallel region
// each, and between the regions, threads would wait for the Python interpreter. Here, the whole step is one parallel
// region. The operations and their order are those of LlamaDecoder, so that the results are bitwise identical.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "row_kernels.h"
#include "team_kernels.h"

// The structures below correspond to those in native_layers.py.

struct LinearLayer {
  int64_t bits;  // 8, 5 or 4; or 16 for a bf16 weight, which is packed unless ``padded`` is 0
  int64_t inputs, outputs, padded, group_size;
  const void *weight, *scales, *codebook, *bias;
};

struct DecoderLayer {
  const void *input_norm, *post_attention_norm;
  LinearLayer qkv, o, gate_up, down;
  int64_t window;  // 0 means unlimited
};

// The last ``rows`` of ``context`` tokens of a sequence.
struct PromptRows {
  const int64_t* table;
  int64_t rows, context;
};

// Attention is computed row by row for the first ``num_single`` rows, and then for the rows of each prompt together.
struct DecoderStep {
  const DecoderLayer* layers;
  void* hidden;                                // [rows][size]: the embeddings, and the result
  void* buffers;                               // memory for Buffers, not initialized
  const void *cos, *sin;                       // [rows][head_size / 2]
  void* cached;                                // [layers][2][num_blocks][kv_heads][block_size][head_size]
  float* cached_scales;                        // [layers][2][num_blocks][kv_heads][block_size]; null unless int8
  const int64_t *slots, *tables, *contexts;    // [rows], [num_single][table_width], [num_single]
  const PromptRows* prompts;                   // [num_prompts]; none unless rows are bf16 and the CPU has AVX-512
  int64_t num_layers, rows, num_single, num_prompts, size, heads, kv_heads, head_size, intermediate;
  int64_t num_blocks, block_size, table_width;
  float eps, attention_scale;
};

namespace {

// The inputs and outputs of operations. native_layers.py computes the size of their memory and allocates it, so that it is
// measured during the warm-up, and so that running out of memory raises an exception.
template <class T>
struct Buffers {
  T *normed, *projected, *attended, *qkv, *gate_up, *gated;
  QuantizedRows& quantized;

  Buffers(const DecoderStep& s, QuantizedRows& quantized) : quantized(quantized) {
    const int64_t attended_size = s.heads * s.head_size, kv_size = s.kv_heads * s.head_size;
    T* next = (T*)s.buffers;
    auto take = [&](int64_t size) { return std::exchange(next, next + s.rows * size); };
    normed = take(s.size), projected = take(s.size), attended = take(attended_size);
    qkv = take(attended_size + 2 * kv_size), gate_up = take(2 * s.intermediate), gated = take(s.intermediate);
    for (int64_t i = 0; i < s.num_layers; i++)
      for (const LinearLayer* layer : {&s.layers[i].qkv, &s.layers[i].o, &s.layers[i].gate_up, &s.layers[i].down})
        if (layer->bits != 16) quantized.reserve(s.rows, weight_of(*layer));
  }

  static QuantizedWeight weight_of(const LinearLayer& layer) {
    return {(const uint8_t*)layer.weight, layer.scales, (const int8_t*)layer.codebook, layer.outputs, layer.padded,
            int(layer.group_size)};
  }
};

// A step with rows of type T and a cache of type K. All threads of a team call each function.
template <class T, class K>
struct Step {
  const DecoderStep& s;
  Buffers<T>& buffers;
  T* hidden = (T*)s.hidden;

  void run() {
    for (int64_t i = 0; i < s.num_layers; i++) {
      const DecoderLayer& layer = s.layers[i];
      add_and_norm(i ? buffers.projected : nullptr, layer.input_norm);
      multiply(layer.qkv, buffers.normed, buffers.qkv);
      attend(i, layer.window);
      multiply(layer.o, buffers.attended, buffers.projected);
      add_and_norm(buffers.projected, layer.post_attention_norm);
      multiply(layer.gate_up, buffers.normed, buffers.gate_up);
      gate();
      multiply(layer.down, buffers.gated, buffers.projected);
    }
    add_and_norm(buffers.projected, nullptr);
  }

  // Adds ``addend`` to the hidden states and stores their norm. ``addend`` and ``weight`` can be null.
  void add_and_norm(const T* addend, const void* weight) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < s.rows; row++) {
      int64_t first = row * s.size;
      if (addend) add_row(addend + first, s.size, hidden + first);
      if (weight) rms_norm_row(hidden + first, (const T*)weight, s.eps, s.size, &buffers.normed[first]);
    }
  }

  void multiply(const LinearLayer& layer, const T* x, T* y) {
    if constexpr (std::is_same_v<T, bf16>)
      if (layer.bits == 16) return multiply_bf16(layer, x, y);
    team::quantized_linear(int(layer.bits), x, s.rows, layer.inputs, Buffers<T>::weight_of(layer),
                           (const float*)layer.bias, y, buffers.quantized);
  }

  void multiply_bf16(const LinearLayer& layer, const bf16* x, bf16* y) {
#ifdef __AVX512BF16__
    auto linear = layer.padded ? team::packed_bf16_linear : team::bf16_linear;
    linear(x, s.rows, layer.inputs, (const bf16*)layer.weight, layer.outputs, (const bf16*)layer.bias, y);
#endif
  }

  // Applies RoPE to queries and keys, stores keys and values in the cache, and computes attention.
  void attend(int64_t layer, int64_t window) {
    int64_t kept = s.num_blocks * s.kv_heads * s.block_size;  // keys per layer in the cache
    K *keys = (K*)s.cached + layer * 2 * kept * s.head_size, *values = keys + kept * s.head_size;
    float *key_scales = nullptr, *value_scales = nullptr;
    if (s.cached_scales) key_scales = s.cached_scales + layer * 2 * kept, value_scales = key_scales + kept;
    team::rope_and_cache(NewTokens<T, K>{
        buffers.qkv, (const T*)s.cos, (const T*)s.sin, keys, values, key_scales, value_scales, s.slots, s.rows,
        s.heads, s.kv_heads, s.head_size, s.block_size});
    const int64_t stride = (s.heads + 2 * s.kv_heads) * s.head_size;  // of a row of q, k and v
    if (s.num_single)
      team::decode_attention(DecodeAttention<T, K>{
          buffers.qkv, keys, values, key_scales, value_scales, s.tables, s.contexts, buffers.attended, stride,
          s.num_single, s.heads, s.kv_heads, s.head_size, s.table_width, s.block_size, window, s.attention_scale});
#ifdef __AVX512F__
    if constexpr (std::is_same_v<T, bf16>)
      for (int64_t i = 0, row = s.num_single; i < s.num_prompts; row += s.prompts[i++].rows)
        team::prefill_attention(PrefillAttention<K>{
            buffers.qkv + row * stride, keys, values, key_scales, value_scales, s.prompts[i].table,
            buffers.attended + row * s.heads * s.head_size, stride, s.kv_heads * s.block_size * s.head_size,
            s.block_size * s.head_size, s.head_size, s.prompts[i].rows, s.prompts[i].context, s.heads, s.kv_heads,
            s.head_size, s.block_size, window, s.attention_scale, true});
#endif
  }

  void gate() {
    constexpr int64_t CHUNK = 512;
    int64_t size = s.intermediate;
#pragma omp for schedule(static) collapse(2)
    for (int64_t row = 0; row < s.rows; row++)
      for (int64_t k = 0; k < size; k += CHUNK) {
        const T* x = &buffers.gate_up[row * 2 * size + k];
        silu_and_mul_row(x, x + size, std::min(CHUNK, size - k), &buffers.gated[row * size + k]);
      }
  }
};

template <class T, class K>
void run(const DecoderStep& step, int threads) {
  static thread_local QuantizedRows quantized;
  Buffers<T> buffers(step, quantized);
#pragma omp parallel num_threads(threads)
  Step<T, K>{step, buffers}.run();
}

}  // namespace

// Rows and the cache must be bf16 or fp32, except that the cache can be int8. bf16 weights require bf16 rows.
extern "C" void decoder_layers(int is_bf16, const DecoderStep* step, int threads) {
  bool is_int8 = step->cached_scales;
  if (is_bf16 && is_int8) run<bf16, int8_t>(*step, threads);
  else if (is_bf16) run<bf16, bf16>(*step, threads);
  else if (is_int8) run<float, int8_t>(*step, threads);
  else run<float, float>(*step, threads);
}
