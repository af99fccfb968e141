// The product of the cuda backend: out[m, n] = (x_scale[m] scale[n]) * sum_k x[m, k] w[n, k], for
// weights of bf16 and fp8 and any number of rows. A row's bits depend on that row and the weight
// alone, never on the rows beside it or on the device: sums have one order (stream_k.h). x is taken
// in one or two terms (gemm_tiles.h). NaN and infinity reach the outputs they belong to.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/params.h"

namespace mmengine::cuda {

enum class GemmEpilogue : std::uint8_t {
  store,     // out[m, n] = y
  add,       // out[m, n] += y
  silu_mul,  // of gate_up_proj: out[m, i] = silu(y[m, i]) * y[m, n / 2 + i]
};

struct GemmParams {
  TensorView x;                    // [R, k] f32; of a quantised input the values of its codes
  const float* x_scale = nullptr;  // [R] of InputQuant::per_token, else unused
  const Weight& weight;
  GemmEpilogue epilogue = GemmEpilogue::store;
  TensorView out;                // [R, n] f32, in the order of the parts; silu_mul: [R, n / 2]
  std::byte* scratch = nullptr;  // gemm_scratch_bytes(spec, R), at a multiple of 256
};

// On a device with so many multiprocessors. R > 0.
void gemm(const GemmParams& p, int multiprocessors, Stream stream);

}  // namespace mmengine::cuda
