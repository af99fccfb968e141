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
// Maximum and sum are taken eight lanes at a time, on every level in the same order.
inline void soften(const AttendSpan& s, int query, std::int64_t n, std::int64_t width) {
  constexpr int kVectors = kBlockTokens / kWideLanes;
  float* scores = s.scores + query * kBlockTokens;
  Wide x[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    x[v] =
        first(n - kWideLanes * v, load_of<Wide>(scores + kWideLanes * v) * splat_of<Wide>(s.scale),
              splat_of<Wide>(kNone));
  }
  F8 top = splat(kNone);
  for (int i = 0; i < kBlockTokens / 8; ++i) top = max(top, eight(x, i));
  const float before = s.state.highest[query], block_top = highest(top);
  const float after = before > block_top ? before : block_top;
  for (int v = 0; v < kVectors; ++v) {
    x[v] = exp(x[v] - splat_of<Wide>(offset(after)));
    store(scores + kWideLanes * v, x[v]);
  }
  F8 total = zero();
  for (int i = 0; i < kBlockTokens / 8; ++i) total = total + eight(x, i);
  if (after != before) {
    const float factor = exp1(before - offset(after));
    s.state.sum[query] *= factor;
    rescale(s.state.values + query * width, width, factor);
  }
  s.state.highest[query] = after;
  s.state.sum[query] += sum(total);
}

// Blocks lie anywhere, which no hardware prefetcher foresees, and asking for many lines at once
// would take the line buffers from the loads that follow (measured: no gain at all). So while one
// group of blocks, eight pages at most, is multiplied, the next one is asked for: a line of each
// page (ask_ahead) for every eight k.
class Ahead {
 public:
  struct Line {  // of every page
    static constexpr int kLines = 8;
    const std::byte* const* pages;
    int count;
    std::ptrdiff_t at;
    [[gnu::always_inline]] void ask(int i) const {
      if (i < count) prefetch_far(pages[i] + at);
    }
  };

  explicit Ahead(const AttendSpan& s) : s_(s) {
    bytes_ = kv_head_elements(s.head_dim) * static_cast<std::int64_t>(dtype_bytes(s.dtype));
    blocks_ = Line::kLines * kPage / bytes_;
    blocks_ = blocks_ < 1 ? 1 : blocks_ > kSpanBlocks ? kSpanBlocks : blocks_;
    if (s.asked) return;
    find(0);
    while (count_ > 0) {
      const Line line = next();
#pragma GCC unroll 8
      for (int i = 0; i < Line::kLines; ++i) line.ask(i);
    }
  }

  void begin(std::int64_t block) {
    if (block % blocks_ == 0) find(block + blocks_);
  }

  Line next() {
    const Line line{pages_, count_, at_};
    at_ += 64;
    if (at_ == kPage) count_ = 0;
    return line;
  }

 private:
  static constexpr std::int64_t kPage = 4096;

  void find(std::int64_t first) {
    count_ = 0;
    for (std::int64_t i = first; i < first + blocks_ && i < s_.blocks + s_.blocks_next; ++i) {
      for (std::int64_t at = 0; at < bytes_ && count_ < Line::kLines; at += kPage) {
        pages_[count_++] = s_.parts[i] + at;
      }
    }
    at_ = 0;
  }

  const AttendSpan& s_;
  std::int64_t bytes_, blocks_, at_ = 0;
  const std::byte* pages_[Line::kLines];
  int count_ = 0;
};

template <class T, int Columns>
struct AskingRows : Rows<T, Columns> {
  static constexpr int kRun = 8;
  Ahead* ahead;  // null: asks for nothing
  Ahead::Line turn(std::int64_t) const {
    return ahead != nullptr ? ahead->next() : Ahead::Line{nullptr, 0, 0};
  }
};

// Most queries that share a loaded row of keys or values: their sums fill the registers.
constexpr int kQueryTile = kTileRows * kStripColumns / kBlockTokens;

template <int Columns, class T>
inline void add_strip(const AttendSpan& s, const T* values, int query, int count, std::int64_t n,
                      std::int64_t width, std::int64_t column, Ahead* ahead) {
  const AskingRows<T, Columns> b{{values + column, width}, ahead};
  tiles<kQueryTile>(count, [&](int i, auto size) {
    multiply<size()>(Fixed<kBlockTokens>{s.scores + (query + i) * kBlockTokens}, b, n,
                     s.state.values + (query + i) * width + column, width, true);
  });
}

// values[query ..] += weights times V over n positions; `count` queries that see equally many.
template <class T>
inline void add_values(const AttendSpan& s, const T* values, int query, int count, std::int64_t n,
                       std::int64_t width, Ahead* ahead) {
  std::int64_t column = 0;
  for (; column + 32 <= width; column += 32) {
    add_strip<32>(s, values, query, count, n, width, column, ahead);
  }
  for (; column + 16 <= width; column += 16) {
    add_strip<16>(s, values, query, count, n, width, column, ahead);
  }
  for (; column < width; column += 8) {
    add_strip<8>(s, values, query, count, n, width, column, ahead);
  }
}

// Of all positions of the block, also those that a query must not see.
template <class T>
inline void score(const AttendSpan& s, const T* keys, int query, int count, Ahead* ahead) {
  const AskingRows<T, kBlockTokens> b{{keys, kBlockTokens}, ahead};
  tiles<kQueryTile>(count, [&](int i, auto size) {
    multiply<size()>(RowMajor{s.q + (query + i) * s.head_dim, s.head_dim}, b, s.head_dim,
                     s.scores + (query + i) * kBlockTokens, kBlockTokens, false);
  });
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

  Ahead asked(s);
  Ahead* ahead = s.queries <= kQueryTile ? &asked : nullptr;  // many take long enough without
  int begin = 0;  // the first query that reads this block
  for (std::int64_t block = 0; block < s.blocks; ++block) {
    const std::int64_t position = s.first_position + block * kBlockTokens;
    while (begin < s.queries && s.visible[begin] <= position) ++begin;
    const auto seen = [&](int query) {
      const std::int64_t n = s.visible[query] - position;
      return n < kBlockTokens ? n : std::int64_t{kBlockTokens};
    };
    asked.begin(block);
    const auto* keys = block_values(s, reinterpret_cast<const T*>(s.parts[block]),
                                    begin < s.queries ? seen(s.queries - 1) : 0);
    const auto* values = keys + s.head_dim * kBlockTokens;
    score(s, keys, begin, s.queries - begin, ahead);
    for (int query = begin, count; query < s.queries; query += count) {
      const std::int64_t n = seen(query);
      count = 1;
      while (query + count < s.queries && seen(query + count) == n) ++count;
      for (int i = query; i < query + count; ++i) soften(s, i, n, width);
      add_values(s, values, query, count, n, width, ahead);
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
