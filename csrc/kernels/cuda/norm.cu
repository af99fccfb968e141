// RMSNorm of rows, and rounding rows to e4m3 for the weight that follows: a block of 256 threads
// for a row, whose sum of squares is kept in double. Limits: 40 registers, 256 bytes of shared
// memory; rows of any length. Never run on a device.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

namespace mmengine::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSpan = kThreads * 4;  // elements of a row that a block does at once

struct Rows {
  const float* x;
  std::int64_t stride;
  float* out;
  std::int64_t out_stride;
  std::int64_t n;  // columns of out
  bool aligned;
  InputQuant quant;
  float input_scale;
  float* out_scale;
};

// Writes make(i), the elements i .. i + 3 of the row, as its consumer wants them. Called by the
// whole block where the row has a scale of its own: make is called twice then.
template <class Make>
MM_DEVICE void put_row(const Rows& p, std::int64_t row, const Make& make) {
  float scale = p.input_scale;
  if (p.quant == InputQuant::per_token) {
    float largest = 0;
    for (std::int64_t i = 4 * thread_index(); i < p.n; i += kSpan) {
      const Float4 v = make(i);
      for (int j = 0; j < 4; ++j) largest = fmaxf(largest, fabsf(v.v[j]));
    }
    scale = own_scale(block_max(largest, shared_memory<float>()));
    if (thread_index() == 0) p.out_scale[row] = scale;
  }
  float* out = p.out + row * p.out_stride;
  for (std::int64_t i = 4 * thread_index(); i < p.n; i += kSpan) {
    Float4 v = make(i);
    if (p.quant != InputQuant::none) {
      for (int j = 0; j < 4; ++j) v.v[j] = rounded_e4m3(v.v[j], scale);
    }
    store4(out, i, p.n, p.aligned, v);
  }
}

// budget: norm_kernel 40 registers 256 shared; needs none
MM_KERNEL(kThreads)
void norm_kernel(Rows p, const std::int32_t* rows, const float* gain, float eps) {
  const std::int64_t row = block_x();
  const float* x = p.x + (rows != nullptr ? rows[row] : row) * p.stride;
  double squares = 0;
  for (std::int64_t i = 4 * thread_index(); i < p.n; i += kSpan) {
    const Float4 v = load4(x, i, p.n, p.aligned);
    for (int j = 0; j < 4; ++j) squares += static_cast<double>(v.v[j]) * v.v[j];
  }
  const double sum = block_sum(squares, shared_memory<double>());
  const auto inverse = static_cast<float>(1.0 / sqrt(sum / static_cast<double>(p.n) + eps));
  put_row(p, row, [&](std::int64_t i) {
    Float4 v = load4(x, i, p.n, p.aligned);
    const Float4 g = load4(gain, i, p.n, p.aligned);
    for (int j = 0; j < 4; ++j) v.v[j] = v.v[j] * inverse * g.v[j];
    return v;
  });
}

// budget: quantise_kernel 40 registers 256 shared; needs none
MM_KERNEL(kThreads)
void quantise_kernel(Rows p) {
  const std::int64_t row = block_x();
  const float* x = p.x + row * p.stride;
  put_row(p, row, [&](std::int64_t i) { return load4(x, i, p.n, p.aligned); });
}

Rows rows_of(const TensorView& x, const TensorView& out, const Weight& consumer, float* out_scale) {
  return {
      x.as<float>(),   x.row_stride,
      out.as<float>(), out.row_stride,
      out.shape[1],    rows_aligned(x.data, x.row_stride) && rows_aligned(out.data, out.row_stride),
      consumer.quant,  consumer.input_scale,
      out_scale};
}

}  // namespace

void norm_rows(const NormRowsParams& p, Stream stream) {
  const auto count = static_cast<int>(p.out.shape[0]);
  if (count == 0) return;
  Rows rows = rows_of(p.x, p.out, p.consumer, p.out_scale);
  rows.aligned = rows.aligned && rows_aligned(p.norm.gain.data, 4);
  launch(norm_kernel, {"rms_norm", {count}, kThreads, kReduceBytes, stream}, rows, p.rows,
         p.norm.gain.as<const float>(), p.norm.eps);
}

void quantise_rows(TensorView x, const Weight& consumer, float* out_scale, Stream stream) {
  const auto count = static_cast<int>(x.shape[0]);
  if (count == 0 || consumer.quant == InputQuant::none) return;
  launch(quantise_kernel, {"quantise", {count}, kThreads, kReduceBytes, stream},
         rows_of(x, x, consumer, out_scale));
}

}  // namespace mmengine::cuda
