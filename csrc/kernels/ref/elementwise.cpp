// Norm, rotation, gating, embedding and the KV store. KV blocks hold all K, then all V, each
// [block_tokens, num_kv_heads, head_dim].
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/check.h"
#include "base/dtype.h"
#include "kernels/ref/launch.h"

namespace mmengine::ref {
namespace {

void store_element(const KvView& kv, std::byte* data, std::int64_t i, float value) {
  if (kv.dtype == DType::f32) {
    reinterpret_cast<float*>(data)[i] = value;
  } else if (kv.dtype == DType::bf16) {
    reinterpret_cast<std::uint16_t*>(data)[i] = f32_to_bf16(value);
  } else {
    reinterpret_cast<std::uint8_t*>(data)[i] = f32_to_e4m3(value);
    if (std::fabs(value) > kMaxE4m3) ++*kv.saturated;
  }
}

}  // namespace

void rms_norm(const float* x, const float* gain, float eps, std::int64_t n, float* out) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const auto inverse = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + eps));
  for (std::int64_t i = 0; i < n; ++i) out[i] = x[i] * inverse * gain[i];
}

void rope(float* head, const float* cos, const float* sin, std::int64_t head_dim) {
  const std::int64_t half = head_dim / 2;
  for (std::int64_t j = 0; j < half; ++j) {
    const float a = head[j], b = head[j + half];
    head[j] = a * cos[j] - b * sin[j];
    head[j + half] = b * cos[j] + a * sin[j];
  }
}

float silu_mul(float gate, float up) { return gate / (1.0f + std::exp(-gate)) * up; }

float quantise_input(float* x, std::int64_t n, const Weight& consumer) {
  if (consumer.quant == InputQuant::none) return 1.0f;
  const bool fixed = consumer.quant == InputQuant::fixed;
  float scale = consumer.input_scale;
  if (!fixed) {
    float largest = 0;
    for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
    scale = e4m3_scale(largest);
  }
  for (std::int64_t i = 0; i < n; ++i) x[i] = e4m3_to_f32(f32_to_e4m3(x[i] / scale));
  return fixed ? 1.0f : scale;
}

void embed(const EmbedParams& p) {
  for (std::int64_t r = 0; r < p.step.rows; ++r) {
    const std::int32_t id = p.step.ids[r];
    MM_CHECK(id >= 0 && id < p.table.spec.n, "embed", "ids[", r, "]: expected 0 to ",
             p.table.spec.n - 1, ", got ", id);
    float* out = p.out.as<float>() + r * p.out.row_stride;
    const float scale = p.table.scales != nullptr ? p.table.scales[id] : 1.0f;
    for (std::int64_t k = 0; k < p.table.spec.k; ++k) {
      out[k] = weight_element(p.table, id, k) * scale;
    }
  }
}

std::int64_t value_offset_bytes(const KvView& kv) {
  return std::int64_t{kv.block_tokens} * kv.num_kv_heads * kv.head_dim *
         static_cast<std::int64_t>(dtype_bytes(kv.dtype));
}

std::byte* kv_address(const KvView& kv, const Step& step, std::int32_t sequence,
                      std::int64_t position, std::int64_t kv_head) {
  const std::int64_t slot = step.slot[sequence];
  const std::int64_t block = step.block_table[slot * step.max_blocks + position / kv.block_tokens];
  const std::int64_t element =
      (position % kv.block_tokens * kv.num_kv_heads + kv_head) * kv.head_dim;
  return kv.data + block * kv.block_bytes +
         element * static_cast<std::int64_t>(dtype_bytes(kv.dtype));
}

void rope_store(const NormQkvRopeStoreParams& p, TensorView qkv) {
  const KvView& kv = p.kv;
  const std::int64_t head_dim = kv.head_dim;
  const std::int64_t num_heads = p.q.shape[1] / head_dim;
  for (std::int64_t r = 0; r < p.step.rows; ++r) {
    const std::int64_t position = p.step.positions[r];
    const float* cos = p.rope.cos + position * (head_dim / 2);
    const float* sin = p.rope.sin + position * (head_dim / 2);
    float* q = qkv.as<float>() + r * qkv.row_stride;
    float* k = q + num_heads * head_dim;
    const float* v = k + kv.num_kv_heads * head_dim;
    const float scale = p.rope.query_scale != nullptr ? p.rope.query_scale[position] : 1.0f;
    for (std::int64_t h = 0; h < num_heads; ++h) rope(q + h * head_dim, cos, sin, head_dim);
    for (std::int64_t i = 0; i < num_heads * head_dim; ++i) {
      p.q.as<float>()[r * p.q.row_stride + i] = q[i] * scale;
    }
    for (std::int64_t h = 0; h < kv.num_kv_heads; ++h) {
      rope(k + h * head_dim, cos, sin, head_dim);
      std::byte* key = kv_address(kv, p.step, p.step.sequence[r], position, h);
      std::byte* value = key + value_offset_bytes(kv);
      for (std::int64_t i = 0; i < head_dim; ++i) {
        store_element(kv, key, i, k[h * head_dim + i]);
        store_element(kv, value, i, v[h * head_dim + i]);
      }
    }
  }
}

}  // namespace mmengine::ref
