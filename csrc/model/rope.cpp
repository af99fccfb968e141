#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace mmengine {
namespace {

// The pair that makes `rotations` turns within the original context.
double correction_pair(const RopeConfig& c, double rotations, double head_dim) {
  return head_dim * std::log(c.original_context / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(c.theta));
}

// 0 for the pairs that keep their frequency, 1 for those that are stretched, a ramp between.
std::vector<float> stretched_share(const RopeConfig& c, std::int64_t head_dim) {
  const auto width = static_cast<double>(head_dim);
  double low = correction_pair(c, c.beta_fast, width);
  double high = correction_pair(c, c.beta_slow, width);
  if (c.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, width - 1);
  if (low == high) high += 0.001;
  std::vector<float> share(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t j = 0; j < share.size(); ++j) {
    const float ramp =
        (static_cast<float>(j) - static_cast<float>(low)) / static_cast<float>(high - low);
    share[j] = std::clamp(ramp, 0.0f, 1.0f);
  }
  return share;
}

// powers: theta^(2j / head_dim)
std::vector<float> yarn_frequencies(const RopeConfig& c, const std::vector<float>& powers) {
  const std::vector<float> share = stretched_share(c, static_cast<std::int64_t>(2 * powers.size()));
  std::vector<float> inverse(powers.size());
  for (std::size_t j = 0; j < powers.size(); ++j) {
    const float kept = 1.0f / powers[j];
    const float stretched = 1.0f / (static_cast<float>(c.factor) * powers[j]);
    const float keep = 1.0f - share[j];
    inverse[j] = stretched * (1.0f - keep) + kept * keep;
  }
  return inverse;
}

// What has more than high_freq_factor rotations within the original context keeps its frequency,
// what has fewer than low_freq_factor is stretched, and between them both are blended by the number
// of rotations.
float llama3_frequency(const RopeConfig& c, float kept) {
  constexpr auto kTurn = static_cast<float>(2 * std::numbers::pi);
  const float wavelength = (1.0f / kept) * kTurn;
  const auto factor = static_cast<float>(c.factor);
  if (wavelength > static_cast<float>(c.original_context / c.low_freq_factor)) return kept / factor;
  if (wavelength < static_cast<float>(c.original_context / c.high_freq_factor)) return kept;
  const float rotations = (1.0f / wavelength) * static_cast<float>(c.original_context);
  const float keep = (rotations - static_cast<float>(c.low_freq_factor)) /
                     static_cast<float>(c.high_freq_factor - c.low_freq_factor);
  return (1.0f - keep) * kept / factor + keep * kept;
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeConfig& config, std::int64_t head_dim) {
  std::vector<float> powers(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t j = 0; j < powers.size(); ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(head_dim);
    powers[j] = static_cast<float>(std::pow(config.theta, static_cast<double>(exponent)));
  }
  if (config.type == RopeType::yarn) return yarn_frequencies(config, powers);
  std::vector<float> inverse(powers.size());
  for (std::size_t j = 0; j < powers.size(); ++j) {
    const float kept = 1.0f / powers[j];
    inverse[j] = config.type == RopeType::llama3 ? llama3_frequency(config, kept) : kept;
  }
  return inverse;
}

void fill_query_scale(const RopeConfig& config, std::int64_t positions, float* out) {
  const auto beta = static_cast<float>(config.scaling_beta);
  for (std::int64_t p = 0; p < positions; ++p) {
    const double spans = std::floor(static_cast<double>(p) / config.scaling_context);
    out[p] = 1.0f + beta * std::log(static_cast<float>(1 + spans));
  }
}

void fill_rope_table(const RopeConfig& config, std::int64_t head_dim, std::int64_t positions,
                     float* cos, float* sin) {
  const std::vector<float> inverse = inverse_frequencies(config, head_dim);
  for (std::int64_t p = 0; p < positions; ++p) {
    for (const float frequency : inverse) {
      const auto angle = static_cast<double>(static_cast<float>(p) * frequency);
      *cos++ = static_cast<float>(std::cos(angle) * config.attention_factor);
      *sin++ = static_cast<float>(std::sin(angle) * config.attention_factor);
    }
  }
}

}  // namespace mmengine
