// GEMM of one task: rows of activations times one packed block of 32 weight rows. Few rows stream
// the packed block; more rows widen a panel of it to f32 once and pass over the panel. The chains
// are the same either way: sums wait in `out` between pieces of k and go on from there.
#pragma once

#include "kernels/cpu/launch.h"
#include "kernels/cpu/micro_impl.h"

namespace mmengine::cpu::MM_LEVEL {

constexpr int kStripColumns = 16;  // 6 rows x 16 columns of accumulators fill 12 registers
// Up to this many rows, decoding the block once for every two rows is cheaper than a panel.
template <class T>
constexpr int kStreamRows = sizeof(T) == 1 ? 4 : 8;

template <class T>
inline void stream_rows(const GemmTile& g, const T* block, std::int64_t k, std::int64_t depth) {
  const Packed<T> packed{block + k * kBlockRows};
  int row = 0;
  for (; row + 2 <= g.rows; row += 2) {
    multiply<2, 4>(g.x + row * g.x_stride + k, g.x_stride, packed, depth, g.out + row * kBlockRows,
                   kBlockRows, k > 0);
  }
  if (row < g.rows) {
    multiply<1, 4>(g.x + row * g.x_stride + k, g.x_stride, packed, depth, g.out + row * kBlockRows,
                   kBlockRows, k > 0);
  }
}

// One strip of 16 columns from k on: rows of the strip lie `stride` floats apart.
template <int R>
inline void strip_rows(const GemmTile& g, const float* strip, std::ptrdiff_t stride, std::int64_t k,
                       std::int64_t depth, int row, int column) {
  multiply<R, 2>(g.x + row * g.x_stride + k, g.x_stride, Rows<float, 2>{strip, stride}, depth,
                 g.out + row * kBlockRows + column, kBlockRows, k > 0);
}

// How many of `left` rows go next: tiles of 6, without leaving 1 or 2, which wait for themselves.
inline int tile_rows(int left) {
  if (left == 7 || left == 8) return 4;
  if (left == 9) return 5;
  return left < 6 ? left : 6;
}

inline void strip_all_rows(const GemmTile& g, const float* strip, std::ptrdiff_t stride,
                           std::int64_t k, std::int64_t depth, int column) {
  for (int row = 0, rows = 0; row < g.rows; row += rows) {
    rows = tile_rows(g.rows - row);
    switch (rows) {
      case 6:
        strip_rows<6>(g, strip, stride, k, depth, row, column);
        break;
      case 5:
        strip_rows<5>(g, strip, stride, k, depth, row, column);
        break;
      case 4:
        strip_rows<4>(g, strip, stride, k, depth, row, column);
        break;
      case 3:
        strip_rows<3>(g, strip, stride, k, depth, row, column);
        break;
      case 2:
        strip_rows<2>(g, strip, stride, k, depth, row, column);
        break;
      default:
        strip_rows<1>(g, strip, stride, k, depth, row, column);
    }
  }
}

template <class T>
inline void widen_panel(const T* block, std::int64_t depth, float* panel) {
  const Packed<T> packed{block};
  float* second = panel + kPanelDepth * kStripColumns;
  for (std::int64_t k = 0; k < depth; ++k) {
    F8 w[4];
    packed(k, w);
    store(panel + k * kStripColumns, w[0]);
    store(panel + k * kStripColumns + 8, w[1]);
    store(second + k * kStripColumns, w[2]);
    store(second + k * kStripColumns + 8, w[3]);
  }
}

inline void panel_rows(const GemmTile& g, const float* block, std::int64_t k, std::int64_t depth) {
  const float* strip = block + k * kBlockRows;  // f32 needs no panel
  strip_all_rows(g, strip, kBlockRows, k, depth, 0);
  strip_all_rows(g, strip + kStripColumns, kBlockRows, k, depth, kStripColumns);
}

template <class T>
inline void panel_rows(const GemmTile& g, const T* block, std::int64_t k, std::int64_t depth) {
  widen_panel(block + k * kBlockRows, depth, g.panel);
  strip_all_rows(g, g.panel, kStripColumns, k, depth, 0);
  strip_all_rows(g, g.panel + kPanelDepth * kStripColumns, kStripColumns, k, depth, kStripColumns);
}

template <class T>
void tile(const GemmTile& g) {
  const T* block = static_cast<const T*>(g.block);
  if (g.rows <= 2) return stream_rows(g, block, 0, g.k);
  for (std::int64_t k = 0; k < g.k; k += kPanelDepth) {
    const std::int64_t depth = g.k - k < kPanelDepth ? g.k - k : kPanelDepth;
    if (g.rows <= kStreamRows<T>) {
      stream_rows(g, block, k, depth);
    } else {
      panel_rows(g, block, k, depth);
    }
  }
}

void gemm_tile(const GemmTile& g) {
  switch (g.format) {
    case WeightFormat::f32:
      return tile<float>(g);
    case WeightFormat::bf16:
      return tile<std::uint16_t>(g);
    case WeightFormat::fp8:
      return tile<std::uint8_t>(g);
    case WeightFormat::int8:
    case WeightFormat::int4:
      break;
  }
}

}  // namespace mmengine::cpu::MM_LEVEL
