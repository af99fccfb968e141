// The product with weights of e4m3 (gemm_kernel.cuh): one term of x where the input is quantised,
// else two. Never run on a device.
#include "kernels/cuda/gemm_kernel.cuh"

namespace mmengine::cuda {

void gemm_fp8(const GemmArgs& args, const GemmTile& tile, Stream stream) {
  if (tile.terms == 1) return launch_columns<WeightFormat::fp8, 1>(args, tile, stream);
  launch_columns<WeightFormat::fp8, 2>(args, tile, stream);
}

}  // namespace mmengine::cuda
