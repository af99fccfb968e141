// The sums that the threads of a product hold, and what becomes of a finished tile. Eight warps
// share a tile's 128 rows of the weight, or with 64 columns and more its 32 rows each and half of
// the columns. Lane 4 g + t of a warp holds rows g and g + 8 of columns 2 t and 2 t + 1, so a gate
// and its up, or a rotary pair, are in one thread (weight_layout.h).
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_args.h"

namespace mmengine::cuda {

template <WeightFormat kFormatOf, int kTermsOf, int kColumnsOf>
struct GemmShape {
  static constexpr WeightFormat kFormat = kFormatOf;
  static constexpr int kTerms = kTermsOf;
  static constexpr int kColumns = kColumnsOf;
  static constexpr GemmTile kTile = gemm_tile(kFormat, kTerms, kColumns);
  static constexpr int kStages = kTile.stages;
  static constexpr int kStageBytes = kTile.stage_bytes;
  static constexpr std::size_t kSharedBytes = kTile.shared_bytes();
  static constexpr int kXRowBytes = x_row_bytes(kFormat);
  static constexpr int kWarpsAcross = kColumns >= 64 ? 2 : 1;
  static constexpr int kWarpsDown = kGemmThreads / 32 / kWarpsAcross;
  static constexpr int kRowSteps = static_cast<int>(kTileRows) / 16 / kWarpsDown;
  static constexpr int kColumnSteps = kColumns / 8 / kWarpsAcross;
  static constexpr int kOperands = kFormat == WeightFormat::fp8 ? 2 : 1;  // in 32 bytes of k
  static constexpr int kUnroll = kColumns > 64 ? 1 : 4;  // large tiles have no registers to spare
};

template <class Shape>
MM_DEVICE int first_row() {  // of the warp, in the tile
  return warp_index() / Shape::kWarpsAcross * Shape::kRowSteps * 16;
}
template <class Shape>
MM_DEVICE int first_column() {
  return warp_index() % Shape::kWarpsAcross * Shape::kColumnSteps * 8;
}

template <class Shape>
struct Sums {
  float d[Shape::kRowSteps][Shape::kColumnSteps][4];

  // All threads' sums of one kind side by side.
  static MM_DEVICE Float4* place(float* partials, int slot, int i, int j) {
    auto* quads = reinterpret_cast<Float4*>(partials + slot * kTileRows * Shape::kColumns);
    return quads + (i * Shape::kColumnSteps + j) * kGemmThreads + thread_index();
  }

  // fn(i, j) for every quad, unrolled: sums are registers.
  template <class Fn>
  static MM_DEVICE void each(const Fn& fn) {
#pragma unroll
    for (int i = 0; i < Shape::kRowSteps; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kColumnSteps; ++j) fn(i, j);
    }
  }
  MM_DEVICE void add(int i, int j, const float (&quad)[4]) {
#pragma unroll
    for (int c = 0; c < 4; ++c) d[i][j][c] += quad[c];
  }

  MM_DEVICE void clear() {
    each([&](int i, int j) {
#pragma unroll
      for (float& v : d[i][j]) v = 0;
    });
  }
  MM_DEVICE void add(const Sums& other) {
    each([&](int i, int j) { add(i, j, other.d[i][j]); });
  }
  MM_DEVICE void write(float* partials, int slot) const {
    each([&](int i, int j) {
      const float (&v)[4] = d[i][j];
      *place(partials, slot, i, j) = {{v[0], v[1], v[2], v[3]}};
    });
  }
  MM_DEVICE void read(float* partials, int slot) {
    each([&](int i, int j) {
      const Float4 quad = *place(partials, slot, i, j);
#pragma unroll
      for (int c = 0; c < 4; ++c) d[i][j][c] = quad.v[c];
    });
  }
  MM_DEVICE void add_slot(float* partials, int slot) {
    each([&](int i, int j) { add(i, j, place(partials, slot, i, j)->v); });
  }
};

// Outputs of packed rows `row` and `row` + 8 for row m of x; `low`, `high` are their sums.
MM_DEVICE void finish_pair(const GemmArgs& args, int m, int row, float low, float high) {
  if (m >= args.rows) return;
  const int n = source_row(args.order, row), n8 = source_row(args.order, row + 8);
  const float factor = args.factors[m], own = args.x_scale != nullptr ? args.x_scale[m] : 1.0f;
  const float y = low * factor * (own * args.scales[row]);
  const float y8 = high * factor * (own * args.scales[row + 8]);
  float* out = args.out + m * args.out_stride;
  switch (args.epilogue) {
    case GemmEpilogue::store:
      if (n >= 0) out[n] = y;
      if (n8 >= 0) out[n8] = y8;
      return;
    case GemmEpilogue::add:
      if (n >= 0) out[n] += y;
      if (n8 >= 0) out[n8] += y8;
      return;
    case GemmEpilogue::silu_mul:
      if (n >= 0) out[n] = silu_mul(y, y8);
      return;
  }
}

template <class Shape>
MM_DEVICE void finish_tile(const GemmArgs& args, const Sums<Shape>& total, int tile) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  const TilePlace at = tile_place(tile, args.n_tiles, args.column_blocks);
  const int column = at.column_block * Shape::kColumns + first_column<Shape>() + 2 * t;
  const int row = at.n_tile * static_cast<int>(kTileRows) + first_row<Shape>() + g;
  Sums<Shape>::each([&](int i, int j) {
    const float (&v)[4] = total.d[i][j];
    finish_pair(args, column + 8 * j, row + 16 * i, v[0], v[2]);
    finish_pair(args, column + 8 * j + 1, row + 16 * i, v[1], v[3]);
  });
}

}  // namespace mmengine::cuda
