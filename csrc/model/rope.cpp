#include "model/rope.h"

#include <cmath>
#include <vector>

namespace mmengine {

void fill_rope_table(const RopeConfig& config, std::int64_t head_dim, std::int64_t positions,
                     float* cos, float* sin) {
  const std::int64_t pairs = head_dim / 2;
  std::vector<float> inverse(static_cast<std::size_t>(pairs));
  for (std::int64_t j = 0; j < pairs; ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(head_dim);
    const double power = std::pow(config.theta, static_cast<double>(exponent));
    inverse[static_cast<std::size_t>(j)] = 1.0f / static_cast<float>(power);
  }
  for (std::int64_t p = 0; p < positions; ++p) {
    for (std::int64_t j = 0; j < pairs; ++j) {
      const float angle = static_cast<float>(p) * inverse[static_cast<std::size_t>(j)];
      cos[p * pairs + j] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sin[p * pairs + j] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

}  // namespace mmengine
