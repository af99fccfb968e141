// The product of the cpu backend's stages: tasks of (row group, block of 32 outputs), each of which
// goes through the caller's epilogue while it is in cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/scratch.h"
#include "backend/weight_order.h"
#include "base/parallel.h"
#include "kernels/cpu/launch.h"

namespace mmengine {

// Per thread a tile of sums and a widened panel; the rows of x in tiles, or for int8 and int4
// rounded in groups.
struct GemmScratch {
  std::int64_t tile_floats;
  float *sums, *panels, *tiles = nullptr;
  cpu::GroupRow rounded{};
  GemmScratch(Carver& carver, std::int64_t rows, std::int64_t k, bool in_groups, int threads);
};

// Rows of one task: equal groups, whole register tiles as far as possible, and no more groups than
// the threads need, because each of them decodes every block.
std::int64_t group_rows(std::int64_t rows, std::int64_t blocks, int threads);

// Every row of x in groups, for weights of int8 and int4.
void round_rows(TensorView x, const cpu::Kernels& kernels, ThreadPool& pool,
                const cpu::GroupRow& out);

// Every row of x in tiles, group by group.
void pack_rows(TensorView x, std::int64_t per_group, const cpu::Kernels& kernels, ThreadPool& pool,
               float* tiles);

// The share of a thread of the matrix that `block` belongs to; `next` is the matrix that is read
// afterwards, if that is known.
cpu::Stream share_of(const Weight& weight, std::int64_t block, const Weight* next,
                     const ThreadPool& pool);

// epilogue(block, first_row, rows, tile [rows, 32]) for every task, which writes `columns` columns
// of `out` for each block; row scales are not applied.
template <class Epilogue>
void cpu_gemm(TensorView x, const Weight& weight, TensorView out, std::int64_t columns,
              const cpu::Kernels& kernels, ThreadPool& pool, WeightOrder& order, Carver& carver,
              Epilogue&& epilogue) {
  const std::int64_t rows = x.shape[0], k = weight.spec.k;
  if (rows == 0) return;
  const bool rounds = has_groups(weight.spec.format);
  const GemmScratch scratch(carver, rows, k, rounds, pool.threads());
  const std::int64_t blocks = cpu::packed_rows(weight.spec) / cpu::kBlockRows;
  const std::int64_t per_group = group_rows(rows, blocks, pool.threads());
  const bool tiles = scratch.tiles != nullptr;
  if (rounds) round_rows(x, kernels, pool, scratch.rounded);
  if (tiles) pack_rows(x, per_group, kernels, pool, scratch.tiles);
  const std::int64_t groups = (rows + per_group - 1) / per_group;
  const Weight* next = order.advance(weight);
  const auto* matrix = static_cast<const std::byte*>(weight.data);
  const auto block_bytes = cpu::block_bytes(weight.spec);
  pool.parallel_for(groups * blocks, [&](std::int64_t begin, std::int64_t end, int thread) {
    const cpu::Stream stream = groups == 1
                                   ? share_of(weight, begin, next, pool)
                                   : cpu::Stream{matrix, matrix + blocks * block_bytes, matrix};
    float* sums = scratch.sums + thread * scratch.tile_floats;
    float* panel = scratch.panels + thread * cpu::kPanelFloats;
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t block = task % blocks, first = task / blocks * per_group;
      const int count = static_cast<int>(std::min(per_group, rows - first));
      const auto* data = matrix + block * block_bytes;
      cpu::Target target;  // one row stays in cache
      if (count > 1) {
        target = {out.as<float>() + first * out.row_stride + block * columns, out.row_stride,
                  columns};
      }
      if (rounds) {
        kernels.group_tile({cpu::row_of(scratch.rounded, first, num_groups(k)), count,
                            num_groups(k), data, stream, weight.spec.format, target, sums});
      } else {
        const float* input =
            tiles ? scratch.tiles + first * k : x.as<float>() + first * x.row_stride;
        kernels.gemm_tile({input, x.row_stride, tiles, count, k, data, stream, weight.spec.format,
                           target, panel, sums});
      }
      epilogue(block, first, count, static_cast<const float*>(sums));
    }
  });
}

}  // namespace mmengine
