// The product every other GEMM equals bit for bit: see the chain in launch.h.
#include <cmath>
#include <cstdint>

#include "base/dtype.h"
#include "kernels/ref/launch.h"

namespace mmengine::ref {

float weight_element(const Weight& weight, std::int64_t row, std::int64_t k) {
  const std::int64_t i = row * weight.spec.k + k;
  switch (weight.spec.format) {
    case WeightFormat::f32:
      return static_cast<const float*>(weight.data)[i];
    case WeightFormat::bf16:
      return bf16_to_f32(static_cast<const std::uint16_t*>(weight.data)[i]);
    case WeightFormat::fp8:
      return e4m3_to_f32(static_cast<const std::uint8_t*>(weight.data)[i]);
    case WeightFormat::int8: {
      const GroupRow r = group_row(weight, row);
      return f16_to_f32(r.scales[k / kGroup]) * static_cast<std::int8_t>(r.codes[k]);
    }
    case WeightFormat::int4: {
      const GroupRow r = group_row(weight, row);
      return f16_to_f32(r.scales[k / kGroup]) * r.codes[k] + f16_to_f32(r.minima[k / kGroup]);
    }
  }
  return 0;
}

void gemm(TensorView x, const float* x_scale, const Weight& weight, TensorView out) {
  if (has_groups(weight.spec.format)) return gemm_groups(x, weight, out);
  for (std::int64_t m = 0; m < x.shape[0]; ++m) {
    const float* row = x.as<float>() + m * x.row_stride;
    for (std::int64_t n = 0; n < weight.spec.n; ++n) {
      float sum = 0;
      for (std::int64_t k = 0; k < weight.spec.k; ++k) {
        sum = std::fma(row[k], weight_element(weight, n, k), sum);
      }
      const float own = x_scale != nullptr ? x_scale[m] : 1.0f;
      if (weight.scales != nullptr) sum *= own * weight.scales[n];
      out.as<float>()[m * out.row_stride + n] = sum;
    }
  }
}

}  // namespace mmengine::ref
