// Softmax attention over one span of positions, block by block with a running maximum. What a query
// adds up depends on its own position alone: queries share loads, never sums.
#pragma once

#include "kernels/cpu/launch.h"
#include "kernels/cpu/math_impl.h"
#include "kernels/cpu/micro_impl.h"

namespace mmengine::cpu::MM_LEVEL {

constexpr float kNone = -__builtin_huge_valf();

// The maximum that is subtracted: 0 as long as there is none, so that no infinity meets another.
inline float offset(float highest_score) { return highest_score == kNone ? 0.0f : highest_score; }

inline float exp1(float x) {
  float lanes[8];
  store(lanes, exp(splat(x)));
  return lanes[0];
}

inline void rescale(float* values, std::int64_t n, float factor) {
  const F8 f = splat(factor);
  for (std::int64_t i = 0; i < n; i += 8) store(values + i, load(values + i) * f);
}

// scores <- exp(scale * scores - maximum) of the first n positions, 0 behind; moves the state on.
inline void soften(const AttendSpan& s, int query, std::int64_t n, std::int64_t width) {
  float* scores = s.scores + query * kBlockTokens;
  F8 x[4];
  F8 top = splat(kNone);
  for (int v = 0; v < 4; ++v) {
    x[v] = first(n - 8 * v, load(scores + 8 * v) * splat(s.scale), splat(kNone));
    top = max(top, x[v]);
  }
  const float before = s.state.highest[query], block_top = highest(top);
  const float after = before > block_top ? before : block_top;
  F8 total = zero();
  for (int v = 0; v < 4; ++v) {
    x[v] = exp(x[v] - splat(offset(after)));
    store(scores + 8 * v, x[v]);
    total = total + x[v];
  }
  if (after != before) {
    const float factor = exp1(before - offset(after));
    s.state.sum[query] *= factor;
    rescale(s.state.values + query * width, width, factor);
  }
  s.state.highest[query] = after;
  s.state.sum[query] += sum(total);
}

template <class T, int Columns>
inline void add_strip(const AttendSpan& s, const T* values, int query, int count, std::int64_t n,
                      std::int64_t width, std::int64_t column) {
  const Rows<T, Columns> b{values + column, width};
  const float* weights = s.scores + query * kBlockTokens;
  float* out = s.state.values + query * width + column;
  if (count == 3) multiply<3>(weights, kBlockTokens, b, n, out, width, true);
  if (count == 2) multiply<2>(weights, kBlockTokens, b, n, out, width, true);
  if (count == 1) multiply<1>(weights, kBlockTokens, b, n, out, width, true);
}

// values[query ..] += weights times V over n positions; `count` queries that see equally many.
template <class T>
inline void add_values(const AttendSpan& s, const T* values, int query, int count, std::int64_t n,
                       std::int64_t width) {
  std::int64_t column = 0;
  for (; column + 32 <= width; column += 32) {
    add_strip<T, 32>(s, values, query, count, n, width, column);
  }
  for (; column + 16 <= width; column += 16) {
    add_strip<T, 16>(s, values, query, count, n, width, column);
  }
  for (; column < width; column += 8) add_strip<T, 8>(s, values, query, count, n, width, column);
}

template <class T>
inline void score(const AttendSpan& s, const T* keys, int query, int count) {
  const Rows<T, kBlockTokens> b{keys, kBlockTokens};
  const float* q = s.q + query * s.head_dim;
  float* out = s.scores + query * kBlockTokens;
  if (count == 3) multiply<3>(q, s.head_dim, b, s.head_dim, out, kBlockTokens, false);
  if (count == 2) multiply<2>(q, s.head_dim, b, s.head_dim, out, kBlockTokens, false);
  if (count == 1) multiply<1>(q, s.head_dim, b, s.head_dim, out, kBlockTokens, false);
}

// The K of a block, then the V of its first n positions, as f32: each code is widened once for all
// queries. Behind n nothing is read.
inline const float* block_values(const AttendSpan& s, const std::uint8_t* block, std::int64_t n) {
  const std::int64_t codes = s.head_dim * kBlockTokens + n * padded_head(s.head_dim);
  widen(block, round_up(codes, 32), s.wide);
  return s.wide;
}

template <class T>
inline const T* block_values(const AttendSpan&, const T* block, std::int64_t) {
  return block;
}

template <class T>
void attend(const AttendSpan& s) {
  const std::int64_t width = padded_head(s.head_dim);
  for (int i = 0; i < s.queries; ++i) {
    s.state.highest[i] = kNone;
    s.state.sum[i] = 0;
  }
  for (std::int64_t i = 0; i < s.queries * width; i += 8) store(s.state.values + i, zero());

  int begin = 0;  // the first query that reads this block
  for (std::int64_t block = s.first_block; block < s.end_block; ++block) {
    const std::int64_t position = block * kBlockTokens;
    while (begin < s.queries && s.visible[begin] <= position) ++begin;
    const auto seen = [&](int query) {
      const std::int64_t n = s.visible[query] - position;
      return n < kBlockTokens ? n : std::int64_t{kBlockTokens};
    };
    const auto* keys =
        block_values(s, reinterpret_cast<const T*>(s.head + s.blocks[block] * s.block_bytes),
                     begin < s.queries ? seen(s.queries - 1) : 0);
    const auto* values = keys + s.head_dim * kBlockTokens;
    for (int query = begin, count; query < s.queries; query += count) {
      const std::int64_t n = seen(query);
      count = 1;
      while (count < 3 && query + count < s.queries && seen(query + count) == n) ++count;
      score(s, keys, query, count);
      for (int i = query; i < query + count; ++i) soften(s, i, n, width);
      add_values(s, values, query, count, n, width);
    }
  }
}

void attend_span(const AttendSpan& s) {
  if (s.dtype == DType::f32) {
    attend<float>(s);
  } else if (s.dtype == DType::bf16) {
    attend<std::uint16_t>(s);
  } else {  // widened codes are values / kScaleFactor
    AttendSpan codes = s;
    codes.scale *= kScaleFactor;
    attend<std::uint8_t>(codes);
    rescale(s.state.values, s.queries * padded_head(s.head_dim), kScaleFactor);
  }
}

void merge(const SoftmaxState& into, const SoftmaxState& part, int queries, std::int64_t head_dim) {
  const std::int64_t width = padded_head(head_dim);
  for (int i = 0; i < queries; ++i) {
    const float a = into.highest[i], b = part.highest[i];
    if (b == kNone) continue;  // this query reads nothing there
    const float top = a > b ? a : b;
    const float keep = exp1(a - offset(top)), add = exp1(b - offset(top));
    into.highest[i] = top;
    into.sum[i] = into.sum[i] * keep + part.sum[i] * add;
    for (std::int64_t j = i * width; j < (i + 1) * width; j += 8) {
      store(into.values + j,
            fma(load(part.values + j), splat(add), load(into.values + j) * splat(keep)));
    }
  }
}

}  // namespace mmengine::cpu::MM_LEVEL
