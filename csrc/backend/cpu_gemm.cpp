#include "backend/cpu_gemm.h"

namespace mmengine {

GemmScratch::GemmScratch(Carver& carver, std::int64_t rows, std::int64_t k, bool in_groups,
                         int threads)
    : tile_floats(std::min<std::int64_t>(rows, cpu::kTaskRows) * cpu::kBlockRows),
      sums(carver.floats(tile_floats * threads)),
      panels(carver.floats(cpu::kPanelFloats * threads)) {
  if (!in_groups) {
    if (rows > cpu::kStreamRows) tiles = carver.floats(rows * k);
    return;
  }
  const std::int64_t all = rows * num_groups(k);
  rounded.codes = reinterpret_cast<std::int8_t*>(carver.floats(all * kGroup / 4));
  rounded.scales = carver.floats(all);
  rounded.sums = carver.floats(all);
  rounded.starts = reinterpret_cast<std::int32_t*>(carver.floats(all));
}

std::int64_t group_rows(std::int64_t rows, std::int64_t blocks, int threads) {
  constexpr std::int64_t kTasks = 8, kLeast = 48;  // tasks per thread; rows that pay for a panel
  const std::int64_t wanted = (kTasks * threads + blocks - 1) / blocks;
  const std::int64_t groups =
      std::max((rows + cpu::kTaskRows - 1) / cpu::kTaskRows, std::min(wanted, rows / kLeast));
  const std::int64_t each = (rows + groups - 1) / groups;
  return std::min<std::int64_t>(cpu::round_up(each, 12), cpu::kTaskRows);
}

cpu::Stream share_of(const Weight& weight, std::int64_t block, const Weight* next,
                     const ThreadPool& pool) {
  const auto blocks_of = [](const Weight& w) { return cpu::packed_rows(w.spec) / cpu::kBlockRows; };
  const auto at = [](const Weight& w, std::int64_t i) {
    return static_cast<const std::byte*>(w.data) + i * cpu::block_bytes(w.spec);
  };
  const std::int64_t blocks = blocks_of(weight);
  int thread = 0;
  while (pool.share(blocks, thread + 1) <= block) ++thread;
  const std::byte* end = at(weight, pool.share(blocks, thread + 1));
  return {at(weight, pool.share(blocks, thread)), end,
          next != nullptr ? at(*next, pool.share(blocks_of(*next), thread)) : end};
}

void round_rows(TensorView x, const cpu::Kernels& kernels, ThreadPool& pool,
                const cpu::GroupRow& out) {
  constexpr std::int64_t kRows = 4;  // per task: a wake-up costs more than a few rows
  const std::int64_t count = x.shape[0], k = x.shape[1];
  pool.parallel_for((count + kRows - 1) / kRows, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin * kRows; r < std::min(end * kRows, count); ++r) {
      kernels.round_groups(x.as<float>() + r * x.row_stride, k, cpu::row_of(out, r, num_groups(k)));
    }
  });
}

void pack_rows(TensorView x, std::int64_t per_group, const cpu::Kernels& kernels, ThreadPool& pool,
               float* tiles) {
  constexpr std::int64_t kColumns = 64;  // per task
  const std::int64_t rows = x.shape[0], k = x.shape[1];
  const std::int64_t pieces = (k + kColumns - 1) / kColumns;
  const std::int64_t groups = (rows + per_group - 1) / per_group;
  pool.parallel_for(groups * pieces, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t first = task / pieces * per_group, column = task % pieces * kColumns;
      kernels.pack_tiles({x.as<float>() + first * x.row_stride, x.row_stride,
                          static_cast<int>(std::min(per_group, rows - first)), k, column,
                          std::min(column + kColumns, k), tiles + first * k});
    }
  });
}

}  // namespace mmengine
