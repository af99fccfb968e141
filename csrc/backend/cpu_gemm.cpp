#include "backend/cpu_gemm.h"

namespace mmengine {

GemmScratch::GemmScratch(Carver& carver, std::int64_t rows, std::int64_t groups, int threads)
    : tile_floats(std::min<std::int64_t>(rows, cpu::kTaskRows) * cpu::kBlockRows),
      tiles(carver.floats(tile_floats * threads)),
      panels(carver.floats(cpu::kPanelFloats * threads)) {
  const std::int64_t all = rows * groups;
  rounded.codes = reinterpret_cast<std::int8_t*>(carver.floats(all * kGroup / 4));
  rounded.scales = carver.floats(all);
  rounded.sums = carver.floats(all);
  rounded.starts = reinterpret_cast<std::int32_t*>(carver.floats(all));
}

std::int64_t group_rows(std::int64_t rows) {
  const std::int64_t groups = (rows + cpu::kTaskRows - 1) / cpu::kTaskRows;
  return std::min<std::int64_t>(cpu::round_up((rows + groups - 1) / groups, 12), cpu::kTaskRows);
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

}  // namespace mmengine
