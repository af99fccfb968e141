// The packed layouts of the cpu backend: pure index arithmetic, shared by traits, packing and
// kernels. gate_up: a block holds 16 gate rows and the 16 up rows that belong to them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/params.h"

namespace mmengine::cpu {

// Weights: blocks of 32 rows; per k the 32 weights of the block side by side, in the order in which
// one load and a few shifts widen them (weight_slot); rows padded with zeros. Scales of fp8: f32
// behind the data, one per packed row, times 256 (kScaleFactor).
//
// Groups (int8, int4): in a block one group of k after another: the codes of 4 k of all rows, the
// next 4 k, .., then the 32 f16 scales, then of int4 the 32 minima. Of 4 k: int8 [32 rows, 4] as
// code + 128; int4 [16 rows, 4], row i in the low and row 16 + i in the high half of a byte.
//
// KV: per block and head K as [head_dim, 32 positions], then V as [32 positions, head_dim padded to
// 8].

constexpr std::int64_t kBlockRows = 32;
constexpr int kBlockTokens = 32;
constexpr std::int64_t kLanes = 8;
constexpr std::size_t kAlignment = 64;
// The fp8 decoder yields value / 256; both factors are powers of two.
constexpr float kScaleFactor = 256.0f;

// static: kernels of several instruction sets use it, and each needs a copy of its own.
static constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

constexpr std::int64_t format_bytes(WeightFormat format) {  // of one weight that has no group
  return format == WeightFormat::f32 ? 4 : format == WeightFormat::bf16 ? 2 : 1;
}

// Of one group of a block: its codes, and with scales and minima.
constexpr std::int64_t group_code_bytes(WeightFormat format) {
  return kBlockRows * kGroup / (format == WeightFormat::int4 ? 2 : 1);
}
constexpr std::int64_t group_bytes(WeightFormat format) {
  return group_code_bytes(format) + kBlockRows * (format == WeightFormat::int4 ? 4 : 2);
}

// Rows of the packed matrix, padding included.
constexpr std::int64_t packed_rows(const WeightSpec& spec) {
  return spec.role == Role::gate_up_proj ? 2 * round_up(spec.n / 2, kBlockRows / 2)
                                         : round_up(spec.n, kBlockRows);
}

// Which row of the matrix lane `lane` of block `block` holds; -1: padding.
constexpr std::int64_t source_row(const WeightSpec& spec, std::int64_t block, std::int64_t lane) {
  if (spec.role != Role::gate_up_proj) {
    const std::int64_t row = block * kBlockRows + lane;
    return row < spec.n ? row : -1;
  }
  const std::int64_t half = kBlockRows / 2, size = spec.n / 2;
  const std::int64_t row = block * half + lane % half;
  return row >= size ? -1 : lane < half ? row : size + row;
}

// Where among the 32 weights of one k lane `lane` lies. fp8: 16 words, bf16: 16 double words, with
// lanes 0..15 in their low halves.
constexpr std::int64_t weight_slot(WeightFormat format, std::int64_t lane) {
  switch (format) {
    case WeightFormat::f32:
      return lane;
    case WeightFormat::bf16:
      return lane % 16 * 2 + lane / 16;
    case WeightFormat::fp8:
      return lane % 16 * 2 + lane / 16;
    case WeightFormat::int8:
    case WeightFormat::int4:
      break;  // see groups above
  }
  return lane;
}

constexpr std::int64_t block_bytes(const WeightSpec& spec) {
  if (has_groups(spec.format)) return num_groups(spec.k) * group_bytes(spec.format);
  return kBlockRows * spec.k * format_bytes(spec.format);
}

constexpr std::size_t data_bytes(const WeightSpec& spec) {
  return static_cast<std::size_t>(packed_rows(spec) / kBlockRows * block_bytes(spec));
}

constexpr std::size_t packed_bytes(const WeightSpec& spec) {
  const std::int64_t scales = spec.format == WeightFormat::fp8 ? packed_rows(spec) * 4 : 0;
  return data_bytes(spec) + static_cast<std::size_t>(round_up(scales, kAlignment));
}

static constexpr std::int64_t padded_head(std::int64_t head_dim) {
  return round_up(head_dim, kLanes);
}

constexpr std::int64_t kv_head_elements(std::int64_t head_dim) {
  return kBlockTokens * (head_dim + padded_head(head_dim));
}

constexpr std::size_t kv_block_bytes(std::int64_t num_kv_heads, std::int64_t head_dim,
                                     std::size_t element_bytes) {
  return static_cast<std::size_t>(num_kv_heads * kv_head_elements(head_dim)) * element_bytes;
}

}  // namespace mmengine::cpu
