// The product with weights of e4m3 (gemm_kernel.cuh): one term of x where the input is quantised,
// else two. 256 threads; up to 32 columns two blocks share a multiprocessor. Never run on a device.
#include "kernels/cuda/gemm_kernel.cuh"

namespace mmengine::cuda {
namespace {

template <int kTerms, int kColumns>
using Shape = GemmShape<WeightFormat::fp8, kTerms, kColumns>;

// budget: gemm_fp8_kernel<1, 8> 128 registers 110704 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_fp8_kernel<1, 16> 128 registers 102496 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_fp8_kernel<1, 32> 128 registers 98384 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_fp8_kernel<1, 64> 192 registers 196720 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_fp8_kernel<1, 128> 255 registers 196688 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_fp8_kernel<2, 8> 128 registers 102496 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_fp8_kernel<2, 16> 128 registers 98384 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_fp8_kernel<2, 32> 128 registers 98368 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_fp8_kernel<2, 64> 192 registers 196688 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_fp8_kernel<2, 128> 255 registers 163888 shared; needs HMMA, LDSM, UBLKCP
template <int kTerms, int kColumns>
MM_KERNEL(kGemmThreads, Shape<kTerms, kColumns>::kTile.blocks_per_processor)
void gemm_fp8_kernel(GemmArgs args) {
  run_gemm<Shape<kTerms, kColumns>>(args);
}

template <int kTerms, int kColumns>
void launch_one(const GemmArgs& args, Stream stream) {
  launch(gemm_fp8_kernel<kTerms, kColumns>,
         {"gemm_fp8",
          {args.schedule.blocks},
          kGemmThreads,
          Shape<kTerms, kColumns>::kSharedBytes,
          stream},
         args);
}

}  // namespace

void gemm_fp8(const GemmArgs& args, const GemmTile& tile, Stream stream) {
  with_columns(tile.columns, [&](auto columns) {
    if (tile.terms == 1) {
      launch_one<1, columns>(args, stream);
    } else {
      launch_one<2, columns>(args, stream);
    }
  });
}

}  // namespace mmengine::cuda
