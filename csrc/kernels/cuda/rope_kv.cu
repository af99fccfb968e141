// Rotates q and k, writes q where attention reads it and k and v into their pages as f32, bf16 or
// e4m3 (clamped to +-448, which is counted): a block of 64 threads for each head of each row, a
// thread for each rotary pair of it. Values of the same bits as kernels/ref: nothing is fused.
// Limits: 40 registers, no shared memory; any even head_dim. Never run on a device.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/launch.h"

namespace mmengine::cuda {
namespace {

constexpr int kThreads = 64;

struct RopeStore {
  const float* qkv;
  std::int64_t qkv_stride;
  float* q;
  std::int64_t q_stride;
  int num_heads, num_kv_heads, head_dim;
  RopeTable rope;
  const std::int32_t *positions, *sequence, *slot, *block_table;
  int max_blocks;
  std::byte* pages;
  std::int64_t page_bytes;
  std::int64_t* saturated;
};

MM_DEVICE void narrow(float x, float* out) { *out = x; }
MM_DEVICE void narrow(float x, std::uint16_t* out) { *out = narrow_bf16(x); }
MM_DEVICE void narrow(float x, std::uint8_t* out) { *out = narrow_e4m3(x); }

// The two elements of a pair into the page; how many of them were clamped.
template <class T>
MM_DEVICE int store_pair(const RopeStore& p, T* tile, std::int64_t token, int j, float a, float b) {
  const int half = p.head_dim / 2;
  narrow(a, tile + kv_element(token, j, p.head_dim, sizeof(T)));
  narrow(b, tile + kv_element(token, j + half, p.head_dim, sizeof(T)));
  if constexpr (sizeof(T) > 1) return 0;
  return (fabsf(a) > 448.0f ? 1 : 0) + (fabsf(b) > 448.0f ? 1 : 0);
}

// budget: rope_store_kernel 48 registers 0 shared; needs none
template <class T>
MM_KERNEL(kThreads)
void rope_store_kernel(RopeStore p) {
  const std::int64_t row = block_x();
  const int head = block_y(), half = p.head_dim / 2;
  const std::int64_t position = p.positions[row];
  const float* x = p.qkv + row * p.qkv_stride + std::int64_t{head} * p.head_dim;
  const float* cos = p.rope.cos + position * half;
  const float* sin = p.rope.sin + position * half;
  const int kv = head - p.num_heads;  // negative: a head of q
  const bool is_value = kv >= p.num_kv_heads;

  if (kv < 0) {
    const float scale = p.rope.query_scale != nullptr ? p.rope.query_scale[position] : 1.0f;
    float* q = p.q + row * p.q_stride + std::int64_t{head} * p.head_dim;
    for (int j = thread_index(); j < half; j += kThreads) {
      const float a = x[j], b = x[j + half];
      q[j] = (a * cos[j] - b * sin[j]) * scale;
      q[j + half] = (b * cos[j] + a * sin[j]) * scale;
    }
    return;
  }

  const std::int64_t table = std::int64_t{p.slot[p.sequence[row]]} * p.max_blocks;
  const std::int64_t page = p.block_table[table + position / kBlockTokens];
  if (page == 0) return;  // scrap: of a row that pads its step
  const std::int64_t kv_head = is_value ? kv - p.num_kv_heads : kv, token = position % kBlockTokens;
  T* tile = reinterpret_cast<T*>(p.pages + page * p.page_bytes) +
            (2 * kv_head + (is_value ? 1 : 0)) * kv_tile_elements(p.head_dim);
  int clamped = 0;
  for (int j = thread_index(); j < half; j += kThreads) {
    const float a = x[j], b = x[j + half];
    clamped +=
        is_value ? store_pair(p, tile, token, j, a, b)
                 : store_pair(p, tile, token, j, a * cos[j] - b * sin[j], b * cos[j] + a * sin[j]);
  }
  const auto padded = static_cast<int>(padded_head(p.head_dim));
  for (int i = p.head_dim + thread_index(); i < padded; i += kThreads) {
    narrow(0.0f, tile + kv_element(token, i, p.head_dim, sizeof(T)));
  }
  if constexpr (sizeof(T) == 1) {
    for (int step = 16; step > 0; step /= 2) clamped += shuffle_xor(clamped, step);
    if (lane_index() == 0 && clamped > 0) atomic_add(p.saturated, std::int64_t{clamped});
  }
}

}  // namespace

void rope_store(const NormQkvRopeStoreParams& p, TensorView qkv, Stream stream) {
  if (p.step.rows == 0) return;
  const KvView& kv = p.kv;
  const auto num_heads = static_cast<int>(p.q.shape[1] / kv.head_dim);
  const RopeStore params{qkv.as<float>(),   qkv.row_stride,  p.q.as<float>(), p.q.row_stride,
                         num_heads,         kv.num_kv_heads, kv.head_dim,     p.rope,
                         p.step.positions,  p.step.sequence, p.step.slot,     p.step.block_table,
                         p.step.max_blocks, kv.data,         kv.block_bytes,  kv.saturated};
  const Launch how{
      "rope_store", {p.step.rows, num_heads + 2 * kv.num_kv_heads}, kThreads, 0, stream};
  if (kv.dtype == DType::f32) return launch(rope_store_kernel<float>, how, params);
  if (kv.dtype == DType::bf16) return launch(rope_store_kernel<std::uint16_t>, how, params);
  launch(rope_store_kernel<std::uint8_t>, how, params);
}

}  // namespace mmengine::cuda
