// Attention of 16 rows over one page of 64 positions by one warp: what decode and prefill share, so
// that their bits are the same. A row of a tile is a row of the sequence for one of the query heads
// that share a KV head. q and the weights of the softmax are split in two terms of bf16 (16 bits:
// |x - terms| <= 2^-17 |x|); codes of e4m3 become bf16 without loss. Sums are f32 and start afresh
// with every page; the pages of a split, then the splits, are merged in order. A row's bits follow
// from its own keys alone. An output that is not finite is NaN. Never run on a device.
#pragma once

#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/common.cuh"

namespace mmengine::cuda {

constexpr int kTerms = 2;
constexpr int kRowStep = 16;

// ---- which rows ----------------------------------------------------------------------------

struct Sequence {
  int index = -1;  // negative: none
  int first_row = 0, rows = 0;
  int start = 0;        // position of its first row
  int first_part = -1;  // negative: prefill does it
  int tile = 0;         // of prefill
};

// Walks the sequences in order and gives each its parts; ends where `stop(sequence)` holds.
template <class Stop>
MM_DEVICE Sequence find_sequence(const AttentionArgs& args, Stop stop) {
  int parts = 0;
  for (int s = 0; s < args.sequences; ++s) {
    Sequence found{s, args.cu_rows[s]};
    found.rows = args.cu_rows[s + 1] - found.first_row;
    if (found.rows <= 0) continue;
    found.start = args.positions[found.first_row];
    if (found.rows <= kDecodeRows) {
      const std::int64_t own = found.rows * splits_of(found.start + found.rows);
      if (parts + own <= args.most_parts) {
        found.first_part = parts;
        parts += static_cast<int>(own);
      }
    }
    if (stop(found)) return found;
  }
  return {};
}

// Row `index` of the tile rows of a sequence: query heads of one KV head change fastest.
struct TileRow {
  std::int64_t row;  // of q and out
  int head;
  int count;  // positions that it sees; 0: there is no such row
};
MM_DEVICE TileRow tile_row(const AttentionArgs& args, const Sequence& s, int kv_head, int index) {
  const int r = index / args.heads_per_kv;
  return {std::int64_t{s.first_row} + r, kv_head * args.heads_per_kv + index % args.heads_per_kv,
          r < s.rows ? s.start + r + 1 : 0};
}

// ---- q -------------------------------------------------------------------------------------

// Elements of a row of q in shared memory: 16 bytes more than it has, for other banks.
template <int kHead>
constexpr int kQStride = kHead + 8;

// Where element i stands: a lane finds the codes 4t .. 4t + 3 of a key in one register, of which
// the instruction takes the lower two as k 2t, 2t + 1 and the upper two as 2t + 8, 2t + 9.
template <class T>
MM_DEVICE int q_place(int i) {
  if constexpr (sizeof(T) == 2) return i;
  return i / 16 * 16 + i / 2 % 2 * 8 + i % 16 / 4 * 2 + i % 2;
}

// `rows` tile rows from `first` on into q [terms][rows][kQStride], by the whole block.
template <class T, int kHead>
MM_DEVICE void load_q(const AttentionArgs& args, const Sequence& s, int kv_head, int first,
                      int rows, std::uint16_t* q) {
  for (int e = thread_index(); e < rows * kHead; e += block_threads()) {
    const int index = e / kHead, i = e % kHead;
    const TileRow row = tile_row(args, s, kv_head, first + index);
    const bool exists = row.count > 0 && i < args.head_dim;
    const float x =
        exists ? args.q[row.row * args.q_stride + std::int64_t{row.head} * args.head_dim + i]
               : 0.0f;
    const std::uint16_t high = narrow_bf16(x);
    std::uint16_t* place = q + index * kQStride<kHead> + q_place<T>(i);
    place[0] = high;
    place[rows * kQStride<kHead>] = narrow_bf16(x - widen_bf16(high));
  }
}

// ---- pages ---------------------------------------------------------------------------------

template <class T>
MM_DEVICE const T* keys_of(const AttentionArgs& args, const Sequence& s, std::int64_t page,
                           int kv_head) {
  const std::int64_t block =
      args.block_table[std::int64_t{args.slot[s.index]} * args.max_blocks + page];
  return reinterpret_cast<const T*>(args.pages + block * args.page_bytes) +
         std::int64_t{2} * kv_head * kv_tile_elements(args.head_dim);
}

// By one thread: the first `tokens` keys and values of a page to shared memory, counted by bar.
template <class T>
MM_DEVICE void copy_page(T* keys, const T* from, int tokens, std::int64_t head_dim,
                         std::uint64_t* bar) {
  const auto bytes = static_cast<std::uint32_t>(tokens * padded_head(head_dim) *
                                                static_cast<std::int64_t>(sizeof(T)));
  const std::int64_t values = kv_tile_elements(head_dim);
  mbarrier_expect(bar, 2 * bytes);
  copy_bulk(keys, from, bytes, bar);
  copy_bulk(keys + values, from + values, bytes, bar);
}

MM_DEVICE bool is_finite(std::uint16_t x) { return (x & 0x7f80) != 0x7f80; }
MM_DEVICE bool is_finite(std::uint8_t x) { return (x & 0x7f) != 0x7f; }

// A weight of 0 does not hide a value that is not finite: values that some row of the tile must not
// see, from token `first` on, become 0 if they are not; where there is no token, all do. True if
// this thread met one; add_nonfinite gives it back to the rows that see it. By threads `thread` of
// `threads`.
template <int kHead, class T>
MM_DEVICE bool hide_values(T* values, int first, int tokens, int thread, int threads) {
  bool met = false;
  for (int e = first * kHead + thread; e < kBlockTokens * kHead; e += threads) {
    const bool exists = e / kHead < tokens;
    if (exists && is_finite(values[e])) continue;
    met = met || exists;
    values[e] = 0;
  }
  return met;
}

// ---- products ------------------------------------------------------------------------------

MM_DEVICE std::uint32_t bf16_of_e4m3_x2(std::uint32_t codes) {
  const std::uint32_t f16 = widen_e4m3_x2(static_cast<std::uint16_t>(codes));
  return narrow_bf16_x2(widen_f16(static_cast<std::uint16_t>(f16 & 0xffff)),
                        widen_f16(static_cast<std::uint16_t>(f16 >> 16)));
}

// The K or V of a page: kv_element in 32 bits, for a head that the compiler knows.
template <class T, int kHead>
struct Tile {
  const T* data;

  static_assert((kHead & (kHead - 1)) == 0);
  static constexpr int kElements = 16 / sizeof(T);  // that keep together
  static constexpr int kSwap = kHead * sizeof(T) % 128 == 0 ? 7 : 0;

  static MM_DEVICE int place(int token, int i) {
    return token * kHead + ((i / kElements) ^ (token & kSwap)) * kElements + i % kElements;
  }
  MM_DEVICE const T* at(int token, int i) const { return data + place(token, i); }
  // From the place of this lane in the first 16 x 16 to that in another, at multiples of 8 and 16.
  MM_DEVICE const T* at_step(int own, int token, int i) const {
    return data + (own ^ i) + token * kHead;
  }
};

// 16 tokens x 16 elements of K from (token, i) on: operands of two steps of 8 tokens.
template <int kHead>
MM_DEVICE void load_keys(std::uint32_t (&b)[2][2], const Tile<std::uint16_t, kHead>& keys,
                         int token, int i) {
  const int lane = lane_index();
  const int own = keys.place(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);
  std::uint32_t raw[4];
  load_matrix_x4(raw, keys.at_step(own, token, i));
#pragma unroll
  for (int j = 0; j < 4; ++j) b[j / 2][j % 2] = raw[j];
}
template <int kHead>
MM_DEVICE void load_keys(std::uint32_t (&b)[2][2], const Tile<std::uint8_t, kHead>& keys, int token,
                         int i) {
  std::uint32_t raw[2];
  load_matrix_x2(raw, keys.at_step(keys.place(lane_index() % 16, 0), token, i));
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    b[j][0] = bf16_of_e4m3_x2(raw[j] & 0xffff);
    b[j][1] = bf16_of_e4m3_x2(raw[j] >> 16);
  }
}

// 16 tokens x 16 elements of V: operands of two steps of 8 elements, in the order of value_place.
template <int kHead>
MM_DEVICE void load_values(std::uint32_t (&b)[2][2], const Tile<std::uint16_t, kHead>& values,
                           int token, int i) {
  const int lane = lane_index();
  std::uint32_t raw[4];
  load_matrix_x4_transposed(raw, values.at_step(values.place(lane % 16, lane / 16 * 8), token, i));
#pragma unroll
  for (int j = 0; j < 4; ++j) b[j / 2][j % 2] = raw[j];
}
template <int kHead>
MM_DEVICE void load_values(std::uint32_t (&b)[2][2], const Tile<std::uint8_t, kHead>& values,
                           int token, int i) {
  std::uint32_t raw[2];  // the codes 2g, 2g + 1 of token 2t, then of 2t + 1
  load_matrix_x2_transposed(raw, values.at_step(values.place(lane_index() % 16, 0), token, i));
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    b[0][j] = bf16_of_e4m3_x2((raw[j] & 0xff) | (raw[j] >> 8 & 0xff00));
    b[1][j] = bf16_of_e4m3_x2((raw[j] >> 8 & 0xff) | (raw[j] >> 16 & 0xff00));
  }
}

// Which of 16 elements a lane holds in sums [step][e] of load_values; e / 2 says row g or g + 8.
template <class T>
MM_DEVICE int value_place(int step, int e) {
  const int n = lane_index() % 4 * 2 + e % 2;
  return sizeof(T) == 2 ? 8 * step + n : 2 * n + step;
}

// s [8 tokens each][rows g, g + 8]: q K of 16 rows of q; `term` elements lie between its terms.
template <class T, int kHead>
MM_DEVICE void multiply_keys(float (&s)[8][4], const std::uint16_t* q, int term,
                             const Tile<T, kHead>& keys) {
  const int lane = lane_index();
  const std::uint16_t* own = q + lane % 16 * kQStride<kHead> + lane / 16 * 8;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[n][e] = 0;
  }
#pragma unroll 1
  for (int i = 0; i < kHead; i += 16) {
    std::uint32_t a[kTerms][4];
#pragma unroll
    for (int k = 0; k < kTerms; ++k) load_matrix_x4(a[k], own + k * term + i);
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      std::uint32_t b[2][2];
      load_keys(b, keys, 8 * n, i);
#pragma unroll
      for (int k = 0; k < kTerms; ++k) {
        mma_bf16(s[n], a[k], b[0]);
        mma_bf16(s[n + 1], a[k], b[1]);
      }
    }
  }
}

// ---- softmax -------------------------------------------------------------------------------

struct Softmax {
  float highest = -INFINITY, sum = 0;  // in powers of two
};
struct Factors {
  float keep, add;
};

// The maximum that is subtracted: 0 as long as there is none, so that no infinity meets another.
MM_DEVICE float offset(float highest) { return highest == -INFINITY ? 0.0f : highest; }

// What later positions add; values become fmaf(part, add, value * keep).
MM_DEVICE Factors merge(Softmax& total, const Softmax& part) {
  const float top = fmaxf(total.highest, part.highest);
  const Factors f{exp2_fast(total.highest - offset(top)), exp2_fast(part.highest - offset(top))};
  total = {top, fmaf(part.sum, f.add, total.sum * f.keep)};
  return f;
}

MM_DEVICE float finished(float value, float sum) {
  const float x = value / sum;
  return x - x == 0 ? x : NAN;
}

// Weights of a page, as operands of the product with V.
struct Weights {
  std::uint32_t a[kTerms][kBlockTokens / 16][4];
};

// From q K of a page to its weights; the sum is that of the weights as they are multiplied.
// seen: tokens of the page that the rows g and g + 8 see.
MM_DEVICE void soften(float (&s)[8][4], float scale, const int (&seen)[2], Softmax (&page)[2],
                      Weights& weights) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float highest = -INFINITY;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int token = 8 * n + lane_index() % 4 * 2 + e;
        float& x = s[n][2 * r + e];
        x = token < seen[r] ? x * scale : -INFINITY;
        highest = fmaxf(highest, x);
      }
    }
    highest = fmaxf(highest, shuffle_xor(highest, 1));
    page[r].highest = fmaxf(highest, shuffle_xor(highest, 2));
  }
  float sums[4] = {};
  constexpr std::uint32_t kOnes[2] = {0x3f803f80u, 0x3f803f80u};
#pragma unroll
  for (int k = 0; k < kBlockTokens / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float m = offset(page[i % 2].highest);
      const float x = exp2_fast(s[2 * k + i / 2][i % 2 * 2] - m);
      const float y = exp2_fast(s[2 * k + i / 2][i % 2 * 2 + 1] - m);
      const std::uint32_t high = narrow_bf16_x2(x, y);
      weights.a[0][k][i] = high;
      weights.a[1][k][i] = narrow_bf16_x2(x - widen_bf16(static_cast<std::uint16_t>(high & 0xffff)),
                                          y - widen_bf16(static_cast<std::uint16_t>(high >> 16)));
    }
#pragma unroll
    for (int term = 0; term < kTerms; ++term) mma_bf16(sums, weights.a[term][k], kOnes);
  }
  page[0].sum = sums[0];
  page[1].sum = sums[2];
}

// The weighted values of a page, 16 elements from i on.
template <class T, int kHead>
MM_DEVICE void multiply_values(float (&d)[2][4], const Weights& weights,
                               const Tile<T, kHead>& values, int i) {
#pragma unroll
  for (int e = 0; e < 8; ++e) d[e / 4][e % 4] = 0;
#pragma unroll
  for (int k = 0; k < kBlockTokens / 16; ++k) {
    std::uint32_t b[2][2];
    load_values(b, values, 16 * k, i);
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      mma_bf16(d[0], weights.a[term][k], b[0]);
      mma_bf16(d[1], weights.a[term][k], b[1]);
    }
  }
}

// After hide_values: which sums of this lane see a value from token `first` on that is not finite,
// bit i / 2 + e for element e of those from i on. `values`: the page's own.
template <class T, int kHead>
MM_DEVICE std::uint64_t find_nonfinite(const Tile<T, kHead>& values, int first, int tokens,
                                       const int (&seen)[2]) {
  std::uint64_t found = 0;
#pragma unroll 1
  for (int token = first; token < tokens; ++token) {
#pragma unroll 1
    for (int e = 0; e < kHead / 2; ++e) {
      const T v = *values.at(token, e / 8 * 16 + value_place<T>(e / 4 % 2, e % 4));
      const bool sees = token < (e % 4 < 2 ? seen[0] : seen[1]);
      if (sees && !is_finite(v)) found |= std::uint64_t{1} << e;
    }
  }
  return found;
}

// They become NaN; of `sums` of 16 elements from i on.
MM_DEVICE void add_nonfinite(float (&sums)[2][4], std::uint64_t found, int i) {
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if ((found >> (i / 2 + e) & 1) != 0) sums[e / 4][e % 4] = NAN;
  }
}

}  // namespace mmengine::cuda
