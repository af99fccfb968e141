// The product with weights of bf16 (gemm_kernel.cuh), whose input has two terms. Never run on a
// device.
#include "kernels/cuda/gemm_kernel.cuh"

namespace mmengine::cuda {

void gemm_bf16(const GemmArgs& args, const GemmTile& tile, Stream stream) {
  launch_columns<WeightFormat::bf16, 2>(args, tile, stream);
}

}  // namespace mmengine::cuda
