// Weights in groups and the products with them: see launch.h for layout and arithmetic.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/dtype.h"
#include "kernels/ref/launch.h"

namespace mmengine::ref {
namespace {

constexpr float kLargestCode = 127;
constexpr float kSmallest = 0x1p-100f;  // below it 127 / a would leave the range of f32

struct GroupSums {
  std::int32_t product = 0;  // of the codes of weight and input
  std::int32_t input = 0;    // of the codes of the input
};

GroupSums sum_group(WeightFormat format, const std::uint8_t* weight, const std::int8_t* x) {
  GroupSums sums;
  for (std::int64_t i = 0; i < kGroup; ++i) {
    const std::int32_t code = format == WeightFormat::int8
                                  ? std::int32_t{static_cast<std::int8_t>(weight[i])}
                                  : std::int32_t{weight[i]};
    sums.product += code * x[i];
    sums.input += x[i];
  }
  return sums;
}

}  // namespace

std::size_t group_bytes(const WeightSpec& spec) {
  const std::int64_t per_group = kGroup + (spec.format == WeightFormat::int4 ? 4 : 2);
  return static_cast<std::size_t>(spec.n * num_groups(spec.k) * per_group);
}

GroupRow group_row(const Weight& weight, std::int64_t row) {
  const std::int64_t groups = num_groups(weight.spec.k), all = weight.spec.n * groups;
  const auto* codes = static_cast<const std::uint8_t*>(weight.data);
  const auto* scales = reinterpret_cast<const std::uint16_t*>(codes + all * kGroup);
  const auto* minima = weight.spec.format == WeightFormat::int4 ? scales + all : nullptr;
  return {codes + row * groups * kGroup, scales + row * groups,
          minima != nullptr ? minima + row * groups : nullptr};
}

float quantise_group(const float* x, std::int64_t count, std::int8_t* codes) {
  std::fill_n(codes, kGroup, std::int8_t{0});
  float largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, std::fabs(x[i]));
  }
  if (largest < kSmallest) return 0;
  const float factor = kLargestCode / largest;
  for (std::int64_t i = 0; i < count; ++i) {
    const float code = std::nearbyint(x[i] * factor);
    codes[i] = static_cast<std::int8_t>(std::clamp(code, -kLargestCode, kLargestCode));
  }
  return largest / kLargestCode;
}

void gemm_groups(TensorView x, const Weight& weight, TensorView out) {
  const std::int64_t k = weight.spec.k, groups = num_groups(k);
  std::vector<std::int8_t> codes(static_cast<std::size_t>(groups * kGroup));
  std::vector<float> scales(static_cast<std::size_t>(groups));
  for (std::int64_t m = 0; m < x.shape[0]; ++m) {
    const float* input = x.as<float>() + m * x.row_stride;
    for (std::int64_t g = 0; g < groups; ++g) {
      scales[static_cast<std::size_t>(g)] = quantise_group(
          input + g * kGroup, std::min(kGroup, k - g * kGroup), codes.data() + g * kGroup);
    }
    for (std::int64_t n = 0; n < weight.spec.n; ++n) {
      const GroupRow row = group_row(weight, n);
      float sum = 0;
      for (std::int64_t g = 0; g < groups; ++g) {
        const GroupSums sums =
            sum_group(weight.spec.format, row.codes + g * kGroup, codes.data() + g * kGroup);
        const float scale = scales[static_cast<std::size_t>(g)];
        sum = std::fma(static_cast<float>(sums.product), f16_to_f32(row.scales[g]) * scale, sum);
        if (row.minima == nullptr) continue;
        sum = std::fma(f16_to_f32(row.minima[g]), scale * static_cast<float>(sums.input), sum);
      }
      out.as<float>()[m * out.row_stride + n] = sum;
    }
  }
}

}  // namespace mmengine::ref
