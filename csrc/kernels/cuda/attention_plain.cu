// Causal attention of rows over their pages, plain, for KV in f32 and for heads of more than 128: a
// block of 128 threads for each query head of each row, f32 throughout. Splits of 256 positions
// start afresh and are merged in order, so a row's bits depend on its own keys alone. Scores are
// chains over head_dim, values chains over positions. Limits: 64 registers, 4 (256 + 2 head_dim) +
// 256 bytes of shared memory. Never run on a device.
#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/common.cuh"

namespace mmengine::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kSplit = 256;  // positions

struct Attention {
  const float* q;
  std::int64_t q_stride;
  float* out;
  std::int64_t out_stride;
  int num_heads, num_kv_heads, head_dim;
  float scale;
  const std::int32_t *positions, *sequence, *slot, *block_table;
  int max_blocks;
  const std::byte* pages;
  std::int64_t page_bytes;
};

MM_DEVICE float widen(float x) { return x; }
MM_DEVICE float widen(std::uint16_t x) { return widen_bf16(x); }
MM_DEVICE float widen(std::uint8_t x) { return widen_e4m3(x); }

// The maximum that is subtracted: 0 as long as there is none, so that no infinity meets another.
MM_DEVICE float offset(float highest) { return highest == -INFINITY ? 0.0f : highest; }

template <class T>
MM_DEVICE const T* tile_of(const Attention& p, const std::int32_t* table, std::int64_t position,
                           int kv_head) {
  const std::int64_t page = table[position / kBlockTokens];
  return reinterpret_cast<const T*>(p.pages + page * p.page_bytes) +
         std::int64_t{2} * kv_head * kv_tile_elements(p.head_dim);
}

template <class T>
MM_DEVICE float score(const Attention& p, const T* keys, std::int64_t token, const float* q) {
  constexpr int kElements = 16 / sizeof(T);  // neighbours in every row
  struct alignas(16) Chunk {
    T v[kElements];
  };
  float dot = 0;
  for (int i = 0; i < p.head_dim; i += kElements) {
    const Chunk chunk =
        *reinterpret_cast<const Chunk*>(keys + kv_element(token, i, p.head_dim, sizeof(T)));
    const int n = p.head_dim - i < kElements ? p.head_dim - i : kElements;
    for (int j = 0; j < n; ++j) dot = fmaf(q[i + j], widen(chunk.v[j]), dot);
  }
  return dot * p.scale;
}

// Softmax over one split: its weights into `weights`, its sum and maximum to all threads.
struct Split {
  float highest, sum;
};
template <class T>
MM_DEVICE Split soften(const Attention& p, const std::int32_t* table, std::int64_t first, int n,
                       int kv_head, const float* q, float* weights, void* reduce) {
  float highest = -INFINITY;
  for (int t = thread_index(); t < n; t += kThreads) {
    const std::int64_t position = first + t;
    const float s = score(p, tile_of<T>(p, table, position, kv_head), position % kBlockTokens, q);
    weights[t] = s;
    highest = fmaxf(highest, s);
  }
  highest = block_max(highest, static_cast<float*>(reduce));
  double sum = 0;
  for (int t = thread_index(); t < n; t += kThreads) {
    weights[t] = exp_exact(weights[t] - offset(highest));
    sum += weights[t];
  }
  return {highest, static_cast<float>(block_sum(sum, static_cast<double*>(reduce)))};
}

// budget: attention_kernel 64 registers 8192 shared; needs none
template <class T>
MM_KERNEL(kThreads)
void attention_kernel(Attention p) {
  auto* reduce = shared_memory<double>();
  auto* weights = reinterpret_cast<float*>(reduce + 32);
  float* q = weights + kSplit;
  float* merged = q + p.head_dim;  // sums of weighted values so far
  const std::int64_t row = block_x();
  const int head = block_y(), kv_head = head / (p.num_heads / p.num_kv_heads);
  const std::int64_t count = std::int64_t{p.positions[row]} + 1;
  const std::int32_t* table = p.block_table + std::int64_t{p.slot[p.sequence[row]]} * p.max_blocks;
  const float* own = p.q + row * p.q_stride + std::int64_t{head} * p.head_dim;
  for (int i = thread_index(); i < p.head_dim; i += kThreads) {
    q[i] = own[i];
    merged[i] = 0;
  }
  block_barrier();

  float highest = -INFINITY, sum = 0;
  for (std::int64_t first = 0; first < count; first += kSplit) {
    const int n = static_cast<int>(count - first < kSplit ? count - first : kSplit);
    const Split part = soften<T>(p, table, first, n, kv_head, q, weights, reduce);
    const float top = fmaxf(highest, part.highest);
    const float keep = exp_exact(highest - offset(top)),
                add = exp_exact(part.highest - offset(top));
    for (int i = thread_index(); i < p.head_dim; i += kThreads) {
      float value = 0;
      for (int t = 0; t < n; ++t) {
        const std::int64_t position = first + t;
        const T* values = tile_of<T>(p, table, position, kv_head) + kv_tile_elements(p.head_dim);
        const T v = values[kv_element(position % kBlockTokens, i, p.head_dim, sizeof(T))];
        value = fmaf(weights[t], widen(v), value);
      }
      merged[i] = first == 0 ? value : fmaf(value, add, merged[i] * keep);
    }
    sum = first == 0 ? part.sum : fmaf(part.sum, add, sum * keep);
    highest = top;
    block_barrier();  // `weights` is read until here
  }
  float* out = p.out + row * p.out_stride + std::int64_t{head} * p.head_dim;
  for (int i = thread_index(); i < p.head_dim; i += kThreads) out[i] = merged[i] / sum;
}

}  // namespace

void attention_plain(const AttentionParams& p, Stream stream) {
  const KvView& kv = p.kv;
  const auto num_heads = static_cast<int>(p.q.shape[1] / kv.head_dim);
  const Attention params{p.q.as<float>(),   p.q.row_stride,  p.out.as<float>(), p.out.row_stride,
                         num_heads,         kv.num_kv_heads, kv.head_dim,       p.scale,
                         p.step.positions,  p.step.sequence, p.step.slot,       p.step.block_table,
                         p.step.max_blocks, kv.data,         kv.block_bytes};
  const auto floats = static_cast<std::size_t>(kSplit) + 2 * static_cast<std::size_t>(kv.head_dim);
  const Launch how{"attention",
                   {p.step.rows, num_heads},
                   kThreads,
                   kReduceBytes + floats * sizeof(float),
                   stream};
  if (kv.dtype == DType::f32) return launch(attention_kernel<float>, how, params);
  if (kv.dtype == DType::bf16) return launch(attention_kernel<std::uint16_t>, how, params);
  launch(attention_kernel<std::uint8_t>, how, params);
}

}  // namespace mmengine::cuda
