// Rotary tables: cos and sin of every (position, pair), times the attention factor. Frequencies are
// evaluated in f32 in transformers' order of operations, angles as f32 products, cos and sin of
// them in f64 (model-spec 1.3): a table made wholly in f64 would be another model at far positions.
#pragma once

#include <cstdint>
#include <vector>

#include "model/rope_config.h"

namespace mmengine {

std::vector<float> inverse_frequencies(const RopeConfig& config, std::int64_t head_dim);

// out: host [positions], what a query at each position is multiplied by; transformers' f32
// arithmetic.
void fill_query_scale(const RopeConfig& config, std::int64_t positions, float* out);

// cos, sin: host [positions, head_dim / 2].
void fill_rope_table(const RopeConfig& config, std::int64_t head_dim, std::int64_t positions,
                     float* cos, float* sin);

}  // namespace mmengine
