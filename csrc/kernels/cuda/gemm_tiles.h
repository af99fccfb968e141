// Which tiles a product is computed with: a pure function of formats, sizes and the number of
// multiprocessors. Weights stand on the M side of the matrix instruction (128 rows of them a tile),
// the rows of x on its N side (8 to 128 columns a tile), so that few rows waste little. The choice
// never changes bits (stream_k.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kernels/cuda/stream_k.h"
#include "kernels/cuda/weight_layout.h"
#include "kernels/params.h"

namespace mmengine::cuda {

constexpr int kGemmThreads = 256;
constexpr int kMaxMultiprocessors = 144;  // of a whole GH100; what scratch memory is sized for
constexpr int kMostColumns = 128;         // rows of x in one tile
constexpr int kGeneratedColumns = 64;     // up to here spans may end inside an output tile
constexpr int kMostStages = 6;
constexpr int kSharedOfTwo = 110 * 1024;  // bytes of a block that shares its multiprocessor
constexpr int kSharedOfOne = 225 * 1024;

// ---- x ---------------------------------------------------------------------------------------
// x is f32. Before it is multiplied it becomes one or two terms in the type of the instruction:
//   bf16   first = bf16(x), second = bf16(x - first): 16 bits, |x - terms| <= 2^-17 |x|
//   fp8    f16, as codes of e4m3 become f16 without loss. Codes of a quantised input are one exact
//          term. Others are first multiplied by the power of two that takes the row's largest
//          element into [2^14, 2^15), then split in two: 22 bits, |x - terms| <= 2^-22 |x| +
//          2^-39 max|x|. The outputs are divided by that power.
constexpr int x_terms(const Weight& weight) { return weight.quant == InputQuant::none ? 2 : 1; }

// Bytes of one term of one row in a tile: as many elements as a row of a weight tile has.
constexpr int x_row_bytes(WeightFormat format) {
  return static_cast<int>(tile_columns(format)) * 2;
}

// At which place of a row of x stands element k of a tile. A lane finds four neighbouring codes of
// a weight in one register (ldmatrix moves pairs of bytes) and makes two registers of f16 of them;
// for the instruction the lower two have k 2t, 2t + 1 and the upper two 2t + 8, 2t + 9, so x has
// the same order: of 16 elements 0, 1, 4, 5, 8, 9, 12, 13, then 2, 3, 6, 7, 10, 11, 14, 15.
constexpr int x_place(WeightFormat format, int k) {
  if (format != WeightFormat::fp8) return k;
  return k / 16 * 16 + k / 2 % 2 * 8 + k % 16 / 4 * 2 + k % 2;
}

// ---- tiles -----------------------------------------------------------------------------------

struct GemmTile {
  int columns = 8;      // rows of x
  int terms = 1;        // of x
  int stages = 1;       // k tiles under way to shared memory
  int stage_bytes = 0;  // one k tile: of the weight, then of x
  int blocks_per_processor = 1;

  constexpr int x_bytes() const { return stage_bytes - static_cast<int>(kTileBytes); }
  // The stages, two barriers each, one word for the block.
  constexpr int shared_bytes() const { return stages * (stage_bytes + 16) + 16; }
};

constexpr int gemm_columns(std::int64_t rows) {
  for (int columns : {8, 16, 32, 64}) {
    if (rows <= columns) return columns;
  }
  return kMostColumns;
}

constexpr GemmTile gemm_tile(WeightFormat format, int terms, int columns) {
  GemmTile tile{columns, terms};
  tile.stage_bytes = static_cast<int>(kTileBytes) + columns * terms * x_row_bytes(format);
  tile.blocks_per_processor = columns <= 32 ? 2 : 1;
  const int shared = tile.blocks_per_processor == 2 ? kSharedOfTwo : kSharedOfOne;
  tile.stages = std::min(kMostStages, (shared - 16) / (tile.stage_bytes + 16));
  return tile;
}

// ---- shares ----------------------------------------------------------------------------------

// Many rows make enough tiles: there no span ends inside one, as sums of 128 columns are large.
constexpr StreamK gemm_schedule(const WeightSpec& spec, const GemmTile& tile, std::int64_t rows,
                                int multiprocessors) {
  const std::int64_t column_blocks = (rows + tile.columns - 1) / tile.columns;
  StreamK schedule{static_cast<int>(column_blocks * n_tiles(spec)), static_cast<int>(k_tiles(spec)),
                   1, tile.columns > kGeneratedColumns};
  schedule.blocks = std::min(schedule.whole_tiles ? schedule.tiles : schedule.units(),
                             multiprocessors * tile.blocks_per_processor);
  return schedule;
}

// Where output tile `tile` lies. Blocks take neighbouring tiles at the same time, so these share
// what they read: 8 column blocks go over all of the weight, then the next 8.
constexpr int kRasterColumns = 8;

struct TilePlace {
  int n_tile = 0, column_block = 0;
};

constexpr TilePlace tile_place(int tile, int n_tiles, int column_blocks) {
  const int first = tile / (n_tiles * kRasterColumns) * kRasterColumns;
  const int left = column_blocks - first;
  const int width = left < kRasterColumns ? left : kRasterColumns;
  const int in_group = tile - first * n_tiles;
  return {in_group / width, first + in_group % width};
}

// ---- scratch memory --------------------------------------------------------------------------
// In this order, each part at a multiple of 256 bytes:
//   x         [column blocks][k tiles][terms][columns][x_row_bytes], rows swizzled; zeros where
//             there is no row or no k
//   factors   [rows] f32: what sums of a row are multiplied by
//   arrived   [tiles] u32: how many blocks have written down their part of a tile
//   partials  [slots][128][columns] f32, in the order in which threads hold them

struct GemmScratchLayout {
  std::size_t factors = 0, arrived = 0, partials = 0, bytes = 0;
};

constexpr std::size_t scratch_part(std::int64_t bytes) {
  return static_cast<std::size_t>(round_up(bytes, 256));
}

constexpr GemmScratchLayout gemm_scratch_layout(const StreamK& schedule, const WeightSpec& spec,
                                                const GemmTile& tile, std::int64_t rows,
                                                int slots) {
  const std::int64_t column_blocks = (rows + tile.columns - 1) / tile.columns;
  GemmScratchLayout layout;
  layout.factors = scratch_part(column_blocks * k_tiles(spec) * tile.x_bytes());
  layout.arrived = layout.factors + scratch_part(column_blocks * tile.columns * 4);
  layout.partials = layout.arrived + scratch_part(std::int64_t{schedule.tiles} * 4);
  layout.bytes = layout.partials + scratch_part(std::int64_t{slots} * kTileRows * tile.columns * 4);
  return layout;
}

// Enough for every product of up to `rows` rows with two terms, on any device.
constexpr std::size_t gemm_scratch_bytes(const WeightSpec& spec, std::int64_t rows) {
  std::size_t most = 0;
  for (int columns = 8; columns <= gemm_columns(rows); columns *= 2) {
    const GemmTile tile = gemm_tile(spec.format, 2, columns);
    const std::int64_t count =
        columns < kMostColumns ? std::min<std::int64_t>(rows, columns) : rows;
    const StreamK schedule = gemm_schedule(spec, tile, count, kMaxMultiprocessors);
    const std::int64_t blocks = std::int64_t{kMaxMultiprocessors} * tile.blocks_per_processor;
    const std::int64_t slots = schedule.whole_tiles ? 0
                                                    : std::min(blocks * schedule.segments(),
                                                               schedule.units() + 2 * blocks);
    most = std::max(most, gemm_scratch_layout(schedule, spec, tile, count, slots).bytes);
  }
  return most;
}

}  // namespace mmengine::cuda
