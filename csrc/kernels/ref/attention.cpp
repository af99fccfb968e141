// Causal grouped-query attention over paged KV: all scores of a row, their softmax, the weighted
// sum of the values.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/dtype.h"
#include "kernels/ref/launch.h"

namespace mmengine::ref {
namespace {

float element(const std::byte* data, DType dtype, std::int64_t i) {
  if (dtype == DType::f32) return reinterpret_cast<const float*>(data)[i];
  if (dtype == DType::bf16) return bf16_to_f32(reinterpret_cast<const std::uint16_t*>(data)[i]);
  return e4m3_to_f32(reinterpret_cast<const std::uint8_t*>(data)[i]);
}

}  // namespace

void attention(const AttentionParams& p, float* scores) {
  const KvView& kv = p.kv;
  const std::int64_t head_dim = kv.head_dim;
  const std::int64_t num_heads = p.q.shape[1] / head_dim;
  for (std::int64_t r = 0; r < p.step.rows; ++r) {
    const std::int64_t count = p.step.positions[r] + 1;
    const std::int32_t sequence = p.step.sequence[r];
    for (std::int64_t h = 0; h < num_heads; ++h) {
      const std::int64_t kv_head = h / (num_heads / kv.num_kv_heads);
      const float* q = p.q.as<float>() + r * p.q.row_stride + h * head_dim;
      float* out = p.out.as<float>() + r * p.out.row_stride + h * head_dim;

      float highest = -std::numeric_limits<float>::infinity();
      for (std::int64_t t = 0; t < count; ++t) {
        const std::byte* key = kv_address(kv, p.step, sequence, t, kv_head);
        float dot = 0;
        for (std::int64_t i = 0; i < head_dim; ++i) {
          dot = std::fma(q[i], element(key, kv.dtype, i), dot);
        }
        scores[t] = dot * p.scale;
        highest = std::max(highest, scores[t]);
      }
      double sum = 0;
      for (std::int64_t t = 0; t < count; ++t) {
        scores[t] = std::exp(scores[t] - highest);
        sum += scores[t];
      }
      for (std::int64_t i = 0; i < head_dim; ++i) {
        float weighted = 0;
        for (std::int64_t t = 0; t < count; ++t) {
          const std::byte* key = kv_address(kv, p.step, sequence, t, kv_head);
          weighted =
              std::fma(scores[t], element(key + value_offset_bytes(kv), kv.dtype, i), weighted);
        }
        out[i] = weighted / static_cast<float>(sum);
      }
    }
  }
}

}  // namespace mmengine::ref
