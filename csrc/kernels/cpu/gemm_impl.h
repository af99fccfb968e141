// GEMM of one task: rows of activations times one packed block of 32 weight rows. Few rows stream
// the packed block; more rows widen a panel of it to f32 once and pass over the panel. The chains
// are the same either way: sums wait in `out` between pieces of k and go on from there.
#pragma once

#include "kernels/cpu/launch.h"
#include "kernels/cpu/micro_impl.h"

namespace mmengine::cpu::MM_LEVEL {

template <class T>
inline void stream_rows(const GemmTile& g, const T* block, std::int64_t k, std::int64_t depth) {
  const Packed<T> packed{block + k * kBlockRows, g.stream};
  tiles<kStreamTile>(g.rows, [&](int row, auto size) {
    multiply<size()>(RowMajor{g.x + row * g.x_stride + k, g.x_stride}, packed, depth,
                     g.out + row * kBlockRows, kBlockRows, k > 0);
  });
}

// Eight rows and columns at a time as far as they go.
inline void pack_tile(const PackTiles& p, int row, int rows) {
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

void pack_tiles(const PackTiles& p) {
  even_tiles<kTileRows>(p.rows, [&](int row, auto rows) { pack_tile(p, row, rows()); });
}

// All rows times one strip of columns from k on; rows of the strip lie `stride` floats apart.
inline void strip_rows(const GemmTile& g, const float* strip, std::ptrdiff_t stride, std::int64_t k,
                       std::int64_t depth, int column) {
  even_tiles<kTileRows>(g.rows, [&](int row, auto rows) {
    if (column == 0 && k + depth == g.k) ask_rows(g.target, row, rows());
    multiply<rows()>(Tile<rows()>{g.x + row * g.k + k * rows()},
                     Rows<float, kStripColumns>{strip, stride}, depth,
                     g.out + row * kBlockRows + column, kBlockRows, k > 0);
  });
}

// The panel is made of strips: [kBlockRows / kStripColumns][kPanelDepth][kStripColumns].
template <class T>
inline void widen_panel(const T* block, const Stream& stream, std::int64_t depth, float* panel) {
  const Packed<T> packed{block, stream};
  const auto widen = [&](std::int64_t k, auto count) {
    constexpr int kVectors = Packed<T>::kVectors, kOfStrip = kStripColumns / kWideLanes;
    Wide w[count()][kVectors];
    packed.template load<count()>(k, w[0]);
    for (int i = 0; i < count(); ++i) {
      for (int v = 0; v < kVectors; ++v) {
        float* strip = panel + (v / kOfStrip * kPanelDepth + k + i) * kStripColumns;
        store(strip + v % kOfStrip * kWideLanes, w[i][v]);
      }
    }
  };
  constexpr int kAtOnce = Packed<T>::kAtOnce;
  std::int64_t k = 0;
  for (; k + kAtOnce <= depth; k += kAtOnce) {
    if (k % Packed<T>::kRun == 0) packed.turn(k).ask_all();
    widen(k, std::integral_constant<int, kAtOnce>());
  }
  if (k < depth) widen(k, std::integral_constant<int, 1>());
}

inline void panel_rows(const GemmTile& g, const float* block, std::int64_t k, std::int64_t depth) {
  const float* strip = block + k * kBlockRows;  // f32 needs no panel
  for (int column = 0; column < kBlockRows; column += kStripColumns) {
    strip_rows(g, strip + column, kBlockRows, k, depth, column);
  }
}

template <class T>
inline void panel_rows(const GemmTile& g, const T* block, std::int64_t k, std::int64_t depth) {
  widen_panel(block + k * kBlockRows, g.stream, depth, g.panel);
  for (int column = 0; column < kBlockRows; column += kStripColumns) {
    strip_rows(g, g.panel + column * kPanelDepth, kStripColumns, k, depth, column);
  }
}

template <class T>
void tile(const GemmTile& g) {
  const T* block = static_cast<const T*>(g.block);
  if (!g.tiles) ask_rows(g.target, 0, g.rows);
  if (!g.tiles && g.rows <= kStreamTile) return stream_rows(g, block, 0, g.k);
  // Equal pieces, since a short one moves sums for little; of whole runs (Packed::kRun <= 16).
  const std::int64_t pieces = (g.k + kPanelDepth - 1) / kPanelDepth;
  const std::int64_t most = round_up((g.k + pieces - 1) / pieces, 16);
  for (std::int64_t k = 0; k < g.k; k += most) {
    const std::int64_t depth = g.k - k < most ? g.k - k : most;
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
