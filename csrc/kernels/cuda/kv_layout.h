// Where keys and values lie in the pages of the cuda backend: pure index arithmetic, shared by
// traits and kernels. A page holds 64 tokens of one layer: per KV head K [64 tokens, head_dim],
// then V likewise, so that one (page, head) is one piece that one bulk copy brings. Rows are padded
// with zeros to whole 16 elements, the k of one mma. Where a row is a multiple of 128 bytes, the 16
// bytes number c of token t stand at place c ^ (t % 8): as a tile must lie in shared memory for
// eight rows of one column to be in different banks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mmengine::cuda {

constexpr int kBlockTokens = 64;

constexpr std::int64_t padded_head(std::int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Elements of the K, or the V, of one head of a page.
constexpr std::int64_t kv_tile_elements(std::int64_t head_dim) {
  return kBlockTokens * padded_head(head_dim);
}

// Where element `i` of token `token` (0 .. 63) lies in its tile.
constexpr std::int64_t kv_element(std::int64_t token, std::int64_t i, std::int64_t head_dim,
                                  std::int64_t element_bytes) {
  const std::int64_t row = padded_head(head_dim), chunk = 16 / element_bytes;
  const std::int64_t swap = row * element_bytes % 128 == 0 ? token % 8 : 0;
  return token * row + (i / chunk ^ swap) * chunk + i % chunk;
}

constexpr std::size_t kv_page_bytes(std::int64_t num_kv_heads, std::int64_t head_dim,
                                    std::size_t element_bytes) {
  return static_cast<std::size_t>(2 * num_kv_heads * kv_tile_elements(head_dim)) * element_bytes;
}

}  // namespace mmengine::cuda
