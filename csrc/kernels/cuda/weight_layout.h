// The packed weights of the cuda backend: pure index arithmetic, shared by traits, packing and
// kernels. A matrix is cut into tiles of 128 rows x 128 bytes along k (128 e4m3 codes, 64 bf16),
// each 16 KiB in one piece, so that one bulk copy brings it; all k tiles of 128 rows, then the next
// 128 rows. A tile lies in memory as it must lie in shared memory: the 16 bytes number c of row r
// stand at place c ^ (r % 8) of the row (the 128-byte swizzle), which keeps eight rows of one
// column in different banks and is what wgmma reads. Padding is zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/params.h"

namespace mmengine::cuda {

constexpr std::int64_t kTileRows = 128;
constexpr std::int64_t kTileRowBytes = 128;
constexpr std::int64_t kTileBytes = kTileRows * kTileRowBytes;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Formats that this backend multiplies with.
constexpr bool has_tiles(WeightFormat format) {
  return format == WeightFormat::bf16 || format == WeightFormat::fp8;
}
constexpr std::int64_t element_bytes(WeightFormat format) {
  return format == WeightFormat::fp8 ? 1 : 2;
}
constexpr std::int64_t tile_columns(WeightFormat format) {  // along k
  return kTileRowBytes / element_bytes(format);
}

// ---- the order of rows ---------------------------------------------------------------------
// One thread holds rows r and r + 8 of a product (mma, wgmma). So rows that are computed with
// together are packed 8 apart, in groups of 16: eight of one kind, then the eight that belong to
// them.
//   gate_up_proj   gate rows i .. i + 7, up rows i .. i + 7
//   qkv_proj       of every head, first and second elements of its rotary pairs: j .. j + 7, then
//                  j + head_dim / 2 .. + 7. Of v, too: a spec does not tell where v begins, and
//                  what stores a row knows its place. Heads that are no multiple of 16 keep their
//                  order.

struct PackedOrder {
  int n = 0;
  int head_dim = 0;  // 0: no pairs
  bool gate_up = false;
};

constexpr PackedOrder packed_order(const WeightSpec& spec) {
  const bool pairs = spec.role == Role::qkv_proj && spec.head_dim % 16 == 0;
  return {static_cast<int>(spec.n), pairs ? static_cast<int>(spec.head_dim) : 0,
          spec.role == Role::gate_up_proj};
}

// Rows of the packed matrix, padding included: whole tiles.
constexpr std::int64_t packed_rows(const WeightSpec& spec) {
  const std::int64_t rows = spec.role == Role::gate_up_proj ? 2 * round_up(spec.n / 2, 8) : spec.n;
  return round_up(rows, kTileRows);
}

// Which row of the matrix packed row `row` holds; -1: padding.
constexpr int source_row(const PackedOrder& order, int row) {
  const int in_eight = row % 8, second = row / 8 % 2;
  if (order.gate_up) {
    const int half = order.n / 2, i = row / 16 * 8 + in_eight;
    return i < half ? i + second * half : -1;
  }
  if (row >= order.n) return -1;
  if (order.head_dim == 0) return row;
  const int in_head = row % order.head_dim;
  return row - in_head + in_head / 16 * 8 + in_eight + second * (order.head_dim / 2);
}
constexpr std::int64_t source_row(const WeightSpec& spec, std::int64_t row) {
  return source_row(packed_order(spec), static_cast<int>(row));
}

// Where row `row` of the matrix is packed: the inverse of source_row.
constexpr std::int64_t packed_row(const WeightSpec& spec, std::int64_t row) {
  const PackedOrder order = packed_order(spec);
  if (!order.gate_up && order.head_dim == 0) return row;
  const std::int64_t half = (order.gate_up ? order.n : order.head_dim) / 2;
  const std::int64_t j = order.gate_up ? row : row % order.head_dim;
  const std::int64_t second = j >= half ? 1 : 0, i = j - second * half;
  return row - j + i / 8 * 16 + second * 8 + i % 8;
}

// ---- places --------------------------------------------------------------------------------

constexpr std::int64_t n_tiles(const WeightSpec& spec) { return packed_rows(spec) / kTileRows; }
constexpr std::int64_t k_tiles(const WeightSpec& spec) {
  return (spec.k + tile_columns(spec.format) - 1) / tile_columns(spec.format);
}

// Byte `byte` of row `row` inside a tile whose rows are `row_bytes` long, a multiple of 128.
constexpr std::int64_t swizzled(std::int64_t row, std::int64_t byte,
                                std::int64_t row_bytes = kTileRowBytes) {
  return row * row_bytes + (byte ^ (row % 8 * 16));
}

// The byte at which element (packed row, k) begins.
constexpr std::int64_t element_offset(const WeightSpec& spec, std::int64_t row, std::int64_t k) {
  const std::int64_t columns = tile_columns(spec.format);
  const std::int64_t tile = row / kTileRows * k_tiles(spec) + k / columns;
  return tile * kTileBytes + swizzled(row % kTileRows, k % columns * element_bytes(spec.format));
}

constexpr std::size_t data_bytes(const WeightSpec& spec) {
  return static_cast<std::size_t>(n_tiles(spec) * k_tiles(spec) * kTileBytes);
}

// Behind the data one f32 scale per packed row, 0 for padding. Of bf16 it is 1, but infinity where
// a row has infinities: they become +-1 and the rest of the row 0, as in an fp8 row, because a
// kernel that takes x in two terms would add infinities of both signs.
constexpr std::size_t packed_bytes(const WeightSpec& spec) {
  return data_bytes(spec) + static_cast<std::size_t>(packed_rows(spec)) * sizeof(float);
}

inline const float* row_scales(const Weight& weight) {
  return reinterpret_cast<const float*>(static_cast<const std::byte*>(weight.data) +
                                        data_bytes(weight.spec));
}

}  // namespace mmengine::cuda
