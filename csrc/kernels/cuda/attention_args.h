// Attention with tensor cores: what its kernels are given, which sequences each of them takes, and
// the scratch memory between them. A row's bits are the same whoever computes it
// (attention_tile.cuh), so nothing here changes a result.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/launch.h"

namespace mmengine::cuda {

constexpr int kSplitPages = 4;     // pages that are merged before they meet the rest
constexpr int kDecodeRows = 8;     // of a sequence: up to here its splits are done side by side
constexpr int kPrefillRows = 128;  // rows times query heads of a KV head in one block
constexpr int kMostParts = 2048;   // that scratch memory holds

struct AttentionArgs {
  const float* q;
  std::int64_t q_stride;
  float* out;
  std::int64_t out_stride;
  int num_kv_heads, heads_per_kv, head_dim;
  float scale;  // times log2(e)
  const std::int32_t *positions, *cu_rows, *slot, *block_table;
  int sequences, max_blocks;
  const std::byte* pages;
  std::int64_t page_bytes;
  float* parts;  // values [most_parts, heads, head_dim], then maximum, sum [most_parts, heads, 2]
  int most_parts;
};

constexpr std::int64_t pages_of(std::int64_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}
constexpr std::int64_t splits_of(std::int64_t tokens) {
  return (pages_of(tokens) + kSplitPages - 1) / kSplitPages;
}

// A part is one split of one row, for all its heads. Sequences whose parts do not fit any more are
// left to the kernel of prefill.
constexpr int attention_parts(int rows, int sequences, int max_blocks) {
  const std::int64_t decoded = std::min<std::int64_t>(rows, std::int64_t{kDecodeRows} * sequences);
  const std::int64_t splits = splits_of(std::int64_t{max_blocks} * kBlockTokens);
  return static_cast<int>(std::min<std::int64_t>(decoded * splits, kMostParts));
}

// Whether tensor cores multiply; otherwise attention is plain.
constexpr bool has_attention_tiles(DType kv, std::int64_t head_dim) {
  const std::int64_t head = padded_head(head_dim);
  return kv != DType::f32 && (head == 64 || head == 128);
}

constexpr std::size_t attention_scratch_bytes(int rows, int sequences, int max_blocks,
                                              std::int64_t num_heads, std::int64_t head_dim) {
  if (!has_attention_tiles(DType::bf16, head_dim)) return 0;
  return static_cast<std::size_t>(attention_parts(rows, sequences, max_blocks) * num_heads *
                                  (head_dim + 2)) *
         sizeof(float);
}

// f(an element of the cache, the head as a constant)
template <class F>
void with_tile(DType kv, std::int64_t head_dim, F f) {
  const auto with_head = [&](auto element) {
    if (padded_head(head_dim) == 64) return f(element, std::integral_constant<int, 64>{});
    f(element, std::integral_constant<int, 128>{});
  };
  if (kv == DType::bf16) return with_head(std::uint16_t{});
  with_head(std::uint8_t{});
}

void attention_plain(const AttentionParams& p, Stream stream);
void attention_decode(const AttentionArgs& args, DType kv, Stream stream);
void attention_prefill(const AttentionArgs& args, DType kv, int rows, Stream stream);

}  // namespace mmengine::cuda
