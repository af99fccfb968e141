// gemm: x into terms, then the product; and the kernel that does the first. One block of 256
// threads per row of the tiles, 256 bytes of shared memory. Never run on a device.
#include "base/check.h"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_args.h"

namespace mmengine::cuda {
namespace {

constexpr int kStageThreads = 256;

struct Terms {  // of two neighbours along k, the lower in the low half
  std::uint32_t first, second;
};

MM_DEVICE bool finite(float v) { return (bits_of(v) & 0x7f800000u) != 0x7f800000u; }

// What is left of v beside its first term; nothing where that is not finite.
MM_DEVICE float rest(float v, float first) { return finite(first) ? v - first : 0.0f; }

MM_DEVICE Terms f16_terms(float low, float high) {
  const std::uint32_t first = narrow_f16_x2(low, high);
  const float a = widen_f16(static_cast<std::uint16_t>(first & 0xffff));
  const float b = widen_f16(static_cast<std::uint16_t>(first >> 16));
  return {first, narrow_f16_x2(rest(low, a), rest(high, b))};
}

// Finite numbers stay finite: the largest bf16 and what is left.
MM_DEVICE float first_bf16(float v) {
  const float first = widen_bf16(narrow_bf16(v));
  if (finite(first) || !finite(v)) return first;
  return float_of((bits_of(v) & 0x80000000u) | 0x7f7f0000u);
}

MM_DEVICE Terms bf16_terms(float low, float high) {
  const float a = first_bf16(low), b = first_bf16(high);
  return {narrow_bf16_x2(a, b), narrow_bf16_x2(rest(low, a), rest(high, b))};
}

// The largest finite magnitude of a row, for every thread.
MM_DEVICE float largest_of(const float* row, std::int64_t k) {
  float most = 0;
  for (std::int64_t i = thread_index(); i < k; i += kStageThreads) {
    const float v = fabsf(row[i]);
    if (finite(v) && v > most) most = v;
  }
  return block_max(most, shared_memory<float>());
}

// The power of two that takes `most` into [2^14, 2^15), as an exponent; as far as its inverse is a
// normal number.
MM_DEVICE int scale_exponent(float most) {
  const int exponent = static_cast<int>(bits_of(most) >> 23) - 127;
  const int wanted = 14 - exponent;
  return most == 0 ? 0 : wanted > 126 ? 126 : wanted;
}

MM_DEVICE float power_of_two(int exponent) {
  return float_of(static_cast<std::uint32_t>(exponent + 127) << 23);
}

// budget: stage_rows_kernel 48 registers 256 shared; needs none
template <WeightFormat kFormat>
MM_KERNEL(kStageThreads)
void stage_rows_kernel(StageArgs args) {
  constexpr int kColumns = static_cast<int>(tile_columns(kFormat));  // along k
  constexpr int kRowBytes = x_row_bytes(kFormat);
  for (int i = block_x() * kStageThreads + thread_index(); i < args.tiles;
       i += grid_x() * kStageThreads) {
    args.arrived[i] = 0;
  }

  const bool exists = block_x() < args.rows;
  const std::int64_t k = exists ? args.k : 0;
  const float* row = args.x + (exists ? block_x() * args.x_stride : 0);
  int exponent = 0;
  if (kFormat == WeightFormat::fp8 && args.terms == 2)
    exponent = scale_exponent(largest_of(row, k));
  if (thread_index() == 0) args.factors[block_x()] = power_of_two(-exponent);
  const float scale = power_of_two(exponent);

  const int column = block_x() % args.columns;
  const std::int64_t term_bytes = std::int64_t{args.columns} * kRowBytes;
  std::byte* tiles =
      args.staged + block_x() / args.columns * args.k_tiles * args.terms * term_bytes;
  for (int at = 2 * thread_index(); at < args.k_tiles * kColumns; at += 2 * kStageThreads) {
    const float low = at < k ? row[at] : 0.0f, high = at + 1 < k ? row[at + 1] : 0.0f;
    const Terms terms =
        kFormat == WeightFormat::fp8 ? f16_terms(low * scale, high * scale) : bf16_terms(low, high);
    std::byte* tile = tiles + at / kColumns * args.terms * term_bytes +
                      swizzled(column, x_place(kFormat, at % kColumns) * 2, kRowBytes);
    *reinterpret_cast<std::uint32_t*>(tile) = terms.first;
    if (args.terms == 2) *reinterpret_cast<std::uint32_t*>(tile + term_bytes) = terms.second;
  }
}

}  // namespace

void stage_rows(const StageArgs& args, WeightFormat format, Stream stream) {
  const int blocks = (args.rows + args.columns - 1) / args.columns * args.columns;
  const Launch how{"gemm.stage_rows", {blocks}, kStageThreads, kReduceBytes, stream};
  if (format == WeightFormat::fp8) {
    launch(stage_rows_kernel<WeightFormat::fp8>, how, args);
  } else {
    launch(stage_rows_kernel<WeightFormat::bf16>, how, args);
  }
}

void gemm(const GemmParams& p, int multiprocessors, Stream stream) {
  const WeightSpec& spec = p.weight.spec;
  const int rows = static_cast<int>(p.x.shape[0]);
  const GemmTile tile = gemm_tile(spec.format, x_terms(p.weight), gemm_columns(rows));
  const StreamK schedule = gemm_schedule(spec, tile, rows, multiprocessors);
  MM_CHECK((std::int64_t{schedule.units()} + 1) * schedule.blocks < (std::int64_t{1} << 31), "gemm",
           "units: expected (units + 1) * blocks < 2^31, got ", schedule.units(), " and ",
           schedule.blocks);
  const GemmScratchLayout layout =
      gemm_scratch_layout(schedule, spec, tile, rows, schedule.slots());
  auto* factors = reinterpret_cast<float*>(p.scratch + layout.factors);
  auto* arrived = reinterpret_cast<std::uint32_t*>(p.scratch + layout.arrived);
  stage_rows({p.x.as<float>(), p.x.row_stride, spec.k, rows, tile.columns, tile.terms,
              schedule.k_tiles, p.scratch, factors, arrived, schedule.tiles},
             spec.format, stream);
  const GemmArgs args{schedule,
                      packed_order(spec),
                      static_cast<const std::byte*>(p.weight.data),
                      row_scales(p.weight),
                      p.scratch,
                      factors,
                      p.weight.quant == InputQuant::per_token ? p.x_scale : nullptr,
                      arrived,
                      reinterpret_cast<float*>(p.scratch + layout.partials),
                      p.out.as<float>(),
                      p.out.row_stride,
                      rows,
                      static_cast<int>(n_tiles(spec)),
                      (rows + tile.columns - 1) / tile.columns,
                      p.epilogue};
  if (spec.format == WeightFormat::fp8) {
    gemm_fp8(args, tile, stream);
  } else {
    gemm_bf16(args, tile, stream);
  }
}

}  // namespace mmengine::cuda
