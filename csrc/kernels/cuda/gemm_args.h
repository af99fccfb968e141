// What the launchers of the product's kernels share: the arguments of the kernel itself, and one
// launcher for each weight format (each format is compiled by itself).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_tiles.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/stream_k.h"
#include "kernels/cuda/weight_layout.h"
#include "kernels/params.h"

namespace mmengine::cuda {

struct StageArgs {
  const float* x;  // [rows, k]
  std::int64_t x_stride;
  std::int64_t k;
  int rows;
  int columns, terms;
  int k_tiles;
  std::byte* staged;       // gemm_tiles.h
  float* factors;          // [column blocks * columns]
  std::uint32_t* arrived;  // [tiles], to be zeroed
  int tiles;
};

struct GemmArgs {
  StreamK schedule;
  PackedOrder order;
  const std::byte* weight;
  const float* scales;  // [packed rows]
  const std::byte* staged;
  const float* factors;
  const float* x_scale;  // [rows] or null: 1
  std::uint32_t* arrived;
  float* partials;
  float* out;
  std::int64_t out_stride;
  int rows;
  int n_tiles, column_blocks;
  GemmEpilogue epilogue;
};

// x -> terms in tiles, and their factors.
void stage_rows(const StageArgs& args, WeightFormat format, Stream stream);

// call(columns) with the number as a type: it can be an argument of a template.
template <class Call>
void with_columns(int columns, const Call& call) {
  switch (columns) {
    case 8:
      return call(std::integral_constant<int, 8>{});
    case 16:
      return call(std::integral_constant<int, 16>{});
    case 32:
      return call(std::integral_constant<int, 32>{});
    case 64:
      return call(std::integral_constant<int, 64>{});
    default:
      return call(std::integral_constant<int, kMostColumns>{});
  }
}

void gemm_fp8(const GemmArgs& args, const GemmTile& tile, Stream stream);
void gemm_bf16(const GemmArgs& args, const GemmTile& tile, Stream stream);

}  // namespace mmengine::cuda
