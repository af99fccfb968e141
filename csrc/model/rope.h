// Rotary tables: cos and sin of every (position, pair), evaluated as transformers does in f32 so
// that logits agree (model-spec 1.3): P = f32(theta^(2j/D)), inv = 1 / P, angle = f32(p * inv).
#pragma once

#include <cstdint>

#include "model/config.h"

namespace mmengine {

// cos, sin: host [positions, head_dim / 2].
void fill_rope_table(const RopeConfig& config, std::int64_t head_dim, std::int64_t positions,
                     float* cos, float* sin);

}  // namespace mmengine
