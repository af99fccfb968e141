// The product with weights of bf16 (gemm_kernel.cuh), whose input has two terms. 256 threads; up to
// 32 columns two blocks share a multiprocessor. Never run on a device.
#include "kernels/cuda/gemm_kernel.cuh"

namespace mmengine::cuda {
namespace {

template <int kColumns>
using Shape = GemmShape<WeightFormat::bf16, 2, kColumns>;

// budget: gemm_bf16_kernel<8> 128 registers 110704 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_bf16_kernel<16> 128 registers 102496 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_bf16_kernel<32> 128 registers 98384 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_bf16_kernel<64> 192 registers 196720 shared; needs HMMA, LDSM, UBLKCP
// budget: gemm_bf16_kernel<128> 255 registers 196688 shared; needs HMMA, LDSM, UBLKCP
template <int kColumns>
MM_KERNEL(kGemmThreads, Shape<kColumns>::kTile.blocks_per_processor)
void gemm_bf16_kernel(GemmArgs args) {
  run_gemm<Shape<kColumns>>(args);
}

}  // namespace

void gemm_bf16(const GemmArgs& args, const GemmTile& tile, Stream stream) {
  with_columns(tile.columns, [&](auto columns) {
    launch(
        gemm_bf16_kernel<columns>,
        {"gemm_bf16", {args.schedule.blocks}, kGemmThreads, Shape<columns>::kSharedBytes, stream},
        args);
  });
}

}  // namespace mmengine::cuda
