// GEMM of one task: rows of activations times one packed block of 32 weight rows. Few rows stream
// the packed block; more rows widen a panel of it to f32 once and pass over the panel. The chains
// are the same either way: sums wait in `out` between pieces of k and go on from there.
#pragma once

#include "kernels/cpu/launch.h"
#include "kernels/cpu/micro_impl.h"

namespace mmengine::cpu::MM_LEVEL {

constexpr int kStreamTile = kTileRows / 3;  // rows that share a decoded weight while streaming

template <int R, class T>
inline void stream(const GemmTile& g, const Packed<T>& packed, std::int64_t k, std::int64_t depth,
                   int row) {
  multiply<R>(RowMajor{g.x + row * g.x_stride + k, g.x_stride}, packed, depth,
              g.out + row * kBlockRows, kBlockRows, k > 0);
}

template <class T>
inline void stream_rows(const GemmTile& g, const T* block, std::int64_t k, std::int64_t depth) {
  const Packed<T> packed{block + k * kBlockRows};
  int row = 0;
  for (; row + kStreamTile <= g.rows; row += kStreamTile) {
    stream<kStreamTile>(g, packed, k, depth, row);
  }
  if (kStreamTile > 2 && row + 2 <= g.rows) {
    stream<2>(g, packed, k, depth, row);
    row += 2;
  }
  if (row < g.rows) stream<1>(g, packed, k, depth, row);
}

// One strip of columns from k on: rows of the strip lie `stride` floats apart.
template <int R = kTileRows>
inline void strip_rows(int rows, const GemmTile& g, const float* strip, std::ptrdiff_t stride,
                       std::int64_t k, std::int64_t depth, int row, int column) {
  if (rows == R) {
    multiply<R>(Tile<R>{g.x + row * g.k + k * R}, Rows<float, kStripColumns>{strip, stride}, depth,
                g.out + row * kBlockRows + column, kBlockRows, k > 0);
  } else if constexpr (R > 1) {
    strip_rows<R - 1>(rows, g, strip, stride, k, depth, row, column);
  }
}

// Tiles of kTileRows rows; what is left at the end is halved, so that no tile of one or two rows
// waits for itself.
inline int tile_rows(int left) {
  return left <= kTileRows ? left : left < 2 * kTileRows ? (left + 1) / 2 : kTileRows;
}

// Eight rows and columns at a time as far as they go.
void pack_tiles(const PackTiles& p) {
  for (int row = 0, rows = 0; row < p.rows; row += rows) {
    rows = tile_rows(p.rows - row);
    const float* x = p.x + row * p.x_stride;
    float* tile = p.tiles + row * p.k;
    int r = 0;
    for (; r + 4 <= rows; r += r + 8 <= rows ? 8 : 4) {
      const int count = r + 8 <= rows ? 8 : 4;
      std::int64_t k = p.begin;
      for (; k + 8 <= p.end; k += 8) {
        F8 v[8];
        for (int i = 0; i < 8; ++i) v[i] = load(x + (r + i % count) * p.x_stride + k);
        transpose(v);
        for (int i = 0; i < 8; ++i) {
          float* out = tile + (k + i) * rows + r;
          if (count == 8) store(out, v[i]);
          if (count == 4) store_four(out, v[i]);
        }
      }
      for (; k < p.end; ++k) {
        for (int i = 0; i < count; ++i) tile[k * rows + r + i] = x[(r + i) * p.x_stride + k];
      }
    }
    for (; r < rows; ++r) {
      for (std::int64_t k = p.begin; k < p.end; ++k) tile[k * rows + r] = x[r * p.x_stride + k];
    }
  }
}

inline void strip_all_rows(const GemmTile& g, const float* strip, std::ptrdiff_t stride,
                           std::int64_t k, std::int64_t depth, int column) {
  for (int row = 0, rows = 0; row < g.rows; row += rows) {
    rows = tile_rows(g.rows - row);
    strip_rows(rows, g, strip, stride, k, depth, row, column);
  }
}

// The panel is made of strips: [kBlockRows / kStripColumns][kPanelDepth][kStripColumns].
template <class T>
inline void widen_panel(const T* block, std::int64_t depth, float* panel) {
  const Packed<T> packed{block};
  constexpr int kVectors = 32 / kWideLanes, kOfStrip = kStripColumns / kWideLanes;
  for (std::int64_t k = 0; k < depth; ++k) {
    Wide w[kVectors];
    packed.template load<1>(k, w);
    for (int v = 0; v < kVectors; ++v) {
      store(panel + (v / kOfStrip * kPanelDepth + k) * kStripColumns + v % kOfStrip * kWideLanes,
            w[v]);
    }
  }
}

inline void panel_rows(const GemmTile& g, const float* block, std::int64_t k, std::int64_t depth) {
  const float* strip = block + k * kBlockRows;  // f32 needs no panel
  for (int column = 0; column < kBlockRows; column += kStripColumns) {
    strip_all_rows(g, strip + column, kBlockRows, k, depth, column);
  }
}

template <class T>
inline void panel_rows(const GemmTile& g, const T* block, std::int64_t k, std::int64_t depth) {
  widen_panel(block + k * kBlockRows, depth, g.panel);
  for (int column = 0; column < kBlockRows; column += kStripColumns) {
    strip_all_rows(g, g.panel + column * kPanelDepth, kStripColumns, k, depth, column);
  }
}

template <class T>
void tile(const GemmTile& g) {
  const T* block = static_cast<const T*>(g.block);
  if (!g.tiles && g.rows <= kStreamTile) return stream_rows(g, block, 0, g.k);
  for (std::int64_t k = 0; k < g.k; k += kPanelDepth) {
    const std::int64_t depth = g.k - k < kPanelDepth ? g.k - k : kPanelDepth;
    if (!g.tiles) {
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
      return;  // group_tile
  }
}

}  // namespace mmengine::cpu::MM_LEVEL
