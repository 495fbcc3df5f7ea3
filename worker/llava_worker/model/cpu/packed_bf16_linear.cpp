// Computes y = x W^T + b in bf16, for any number of rows of x, with W packed in panels of 32 outputs.
//
// Within a panel, two inputs of one output are adjacent, as the dot-product instruction requires:
// [outputs / 32][inputs / 2][32][2]. The number of inputs is padded to a multiple of 2, and that of outputs to a
// multiple of 32.
//
// Math libraries convert W to such a layout in each product, which takes longer than the product itself if x has only a
// few rows. Here, W is packed while it is loaded. A group of panels stays in the L2 cache while it is multiplied by all
// rows, so that W is read from memory only once.
//
// The operations for a row and their order do not depend on the other rows, so its result is bitwise identical in every
// batch.
#include <algorithm>
#include <utility>

#include "row_kernels.h"
#include "team_kernels.h"

#ifdef __AVX512BF16__
#include <omp.h>

namespace {

constexpr int MAX_TILE_ROWS = 12, FEW_ROWS = 6;  // 24 of 32 registers hold accumulators
constexpr int64_t PAIR_BYTES = 2 * sizeof(bf16) * PANEL_OUTPUTS;  // of the weights for a pair of inputs in a panel
constexpr int64_t PREFETCH_BYTES = 8192;  // prefetch distance if weights are used only once

struct PackedProduct {
  const bf16* x;  // [rows][inputs]
  int64_t rows, inputs;
  const bf16* w;  // [panels][panel_size()]
  int64_t outputs;
  const bf16* bias;  // [outputs] or null
  bf16* y;           // [rows][outputs]

  int64_t panel_size() const { return (inputs + 1) / 2 * 2 * PANEL_OUTPUTS; }
  int64_t num_panels() const { return (outputs + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS; }
  int64_t num_tiles() const { return (rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS; }
  int64_t first_row(int64_t tile) const { return rows * tile / num_tiles(); }
};

INLINE void store_outputs(const PackedProduct& p, int64_t row, int64_t output, f32x16 sums) {
  int count = int(std::min<int64_t>(16, p.outputs - output));
  if (count <= 0) return;
  if (p.bias) sums += load_up_to(p.bias + output, count);
  store_up_to(p.y + row * p.outputs + output, sums, count);
}

// The weights to prefetch into the L2 cache: ``step`` bytes per pair of inputs, from ``distance`` bytes after the panel
// onward. The hardware prefetcher stops at page boundaries.
struct Prefetch {
  int64_t distance, step;
};

// Multiplies ROWS rows by PANELS panels.
template <int ROWS, int PANELS>
void multiply(const PackedProduct& p, int64_t row, int64_t panel, Prefetch prefetch) {
  const bf16 *x = p.x + row * p.inputs, *w = p.w + panel * p.panel_size();
  const int64_t inputs = p.inputs, panel_size = p.panel_size();
  const char* next = (const char*)w + prefetch.distance;
  f32x16 acc[PANELS][ROWS][2] = {};
  auto multiply_pair = [&](int64_t k, auto pair_of) {
    for (int n = 0; n < PANELS; n++) {
      const bf16* from = w + n * panel_size + k * PANEL_OUTPUTS;
      u32x16 first = read<u32x16>(from), second = read<u32x16>(from + 32);
      for (int i = 0; i < 2; i++) __builtin_prefetch(next + n * panel_size * sizeof(bf16) + i * 64, 0, 2);
      for (int r = 0; r < ROWS; r++) {
        uint32_t pair = pair_of(x + r * inputs + k);
        acc[n][r][0] = dot2_bf16(acc[n][r][0], first, pair);
        acc[n][r][1] = dot2_bf16(acc[n][r][1], second, pair);
      }
    }
    next += prefetch.step;
  };
  for (int64_t k = 0; k + 2 <= inputs; k += 2) multiply_pair(k, [](const bf16* from) { return read<uint32_t>(from); });
  if (inputs % 2) multiply_pair(inputs - 1, [](const bf16* from) { return uint32_t(from->bits); });
  for (int n = 0; n < PANELS; n++)
    for (int r = 0; r < ROWS; r++)
      for (int half = 0; half < 2; half++)
        store_outputs(p, row + r, (panel + n) * PANEL_OUTPUTS + half * 16, acc[n][r][half]);
}

using Multiply = void (*)(const PackedProduct&, int64_t, int64_t, Prefetch);

template <int PANELS, int... R>
Multiply multiply_for(int64_t rows, std::integer_sequence<int, R...>) {
  static const Multiply table[] = {multiply<R + 1, PANELS>...};
  return table[rows - 1];
}

// Multiplies a few rows by panels [panel, end), two at a time, so that there are enough independent sums.
void multiply_few_rows(const PackedProduct& p, int64_t panel, int64_t end) {
  constexpr std::make_integer_sequence<int, FEW_ROWS> counts;
  Prefetch prefetch{PREFETCH_BYTES, PAIR_BYTES};
  for (; panel + 2 <= end; panel += 2) multiply_for<2>(p.rows, counts)(p, 0, panel, prefetch);
  if (panel < end) multiply_for<1>(p.rows, counts)(p, 0, panel, prefetch);
}

// Multiplies the rows of tiles [tile, end) by a panel. Each tile prefetches an equal part of the next panel.
void multiply_tiles(const PackedProduct& p, int64_t panel, int64_t tile, int64_t end) {
  int64_t tiles = end - tile, bytes = p.panel_size() * sizeof(bf16);
  for (int64_t t = 0; t < tiles; t++) {
    int64_t row = p.first_row(tile + t), rows = p.first_row(tile + t + 1) - row;
    Prefetch prefetch{PREFETCH_BYTES, PAIR_BYTES};
    if (tiles > 1) prefetch = {bytes + bytes * t / tiles, (PAIR_BYTES + tiles - 1) / tiles};
    multiply_for<1>(rows, std::make_integer_sequence<int, MAX_TILE_ROWS>())(p, row, panel, prefetch);
  }
}

// Called by all threads of a team. Each thread multiplies consecutive panels, so that it prefetches its next weights. If
// there are fewer panels than threads, the rows are divided, too.
void multiply_rows(const PackedProduct& p) {
  int64_t panels = p.num_panels(), tiles = p.num_tiles();
  if (p.rows <= FEW_ROWS) {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; panel += 2) multiply_few_rows(p, panel, std::min(panel + 2, panels));
    return;
  }
  int64_t blocks = std::clamp<int64_t>(2 * omp_get_num_threads() / panels, 1, tiles);
#pragma omp for schedule(static) collapse(2)
  for (int64_t panel = 0; panel < panels; panel++)
    for (int64_t block = 0; block < blocks; block++)
      multiply_tiles(p, panel, tiles * block / blocks, tiles * (block + 1) / blocks);
}

}  // namespace

void team::packed_bf16_linear(const bf16* x, int64_t rows, int64_t inputs, const bf16* w, int64_t outputs,
                              const bf16* bias, bf16* y) {
  multiply_rows({x, rows, inputs, w, outputs, bias, y});
}

// There must be at least one row.
extern "C" void packed_bf16_linear(const bf16* x, int64_t rows, int64_t inputs, const bf16* w, int64_t outputs,
                                   const bf16* bias, bf16* y, int threads) {
#pragma omp parallel num_threads(threads)
  team::packed_bf16_linear(x, rows, inputs, w, outputs, bias, y);
}

// Packs x, which contains rows [first, first + rows) of W: [rows][inputs].
extern "C" void pack_bf16_weight(const bf16* x, int64_t rows, int64_t inputs, int64_t first, bf16* packed,
                                 int threads) {
  constexpr int64_t BLOCK = 32;  // inputs of all rows of a panel for which the packed weights fit in the L1 cache
  int64_t end = first + rows, panel_size = (inputs + 1) / 2 * 2 * PANEL_OUTPUTS;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t panel = first / PANEL_OUTPUTS; panel < (end + PANEL_OUTPUTS - 1) / PANEL_OUTPUTS; panel++)
    for (int64_t block = 0; block < inputs; block += BLOCK)
      for (int64_t n = std::max(first, panel * PANEL_OUTPUTS); n < std::min(end, (panel + 1) * PANEL_OUTPUTS); n++) {
        const bf16* row = x + (n - first) * inputs;
        bf16* to = packed + panel * panel_size + n % PANEL_OUTPUTS * 2;
        for (int64_t k = block; k < std::min(block + BLOCK, inputs); k++) to[k / 2 * 2 * PANEL_OUTPUTS + k % 2] = row[k];
      }
}
#endif
