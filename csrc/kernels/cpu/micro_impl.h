// The one multiplication of this backend: a few rows of A times a strip of B, accumulators in
// registers. GEMM, attention scores and weighted values are all made of it. MM_SIMD names
// the level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/launch.h"
#include MM_SIMD

namespace mmengine::cpu::MM_LEVEL {

// Strips of B: row k of `Columns` columns as vectors. T is float or std::uint16_t (bf16). kAtOnce k
// are loaded at once; during kRun k the lines of a turn are asked for.
template <class T, int Columns>
struct Rows {
  using Vector = std::conditional_t<Columns % kWideLanes == 0, Wide, F8>;
  static constexpr int kLanesOf = Columns % kWideLanes == 0 ? kWideLanes : 8;
  static constexpr int kVectors = Columns / kLanesOf;
  static constexpr int kAtOnce = 1, kRun = 2;
  struct NoTurn {
    static constexpr int kLines = 0;
    void ask(int) const {}
  };
  const T* data;
  std::ptrdiff_t stride;
  NoTurn turn(std::int64_t) const { return {}; }
  template <int>
  void load(std::int64_t k, Vector* w) const {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = load_of<Vector>(data + k * stride + kLanesOf * v);
  }
};

// Eight lines to be asked for, one after each piece of work: the line buffers of a core are few,
// and what is multiplied needs them as well (measured: 6 % of the time of fp8, beside all at once).
struct Turn {
  static constexpr int kLines = 8;
  const std::byte* at;
  std::ptrdiff_t step;
  [[gnu::always_inline]] void ask(int i) const { prefetch_far(at + i * step); }
  [[gnu::always_inline]] void ask_all() const {
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) ask(i);
  }
};

// On behalf of the 512 bytes of a stream that begin in [at, at + 512): what comes 32 KiB later,
// eight pages in turn. The line buffers keep too little of one run of addresses on its way, and the
// prefetchers of the second-level cache, which add theirs, follow one run in each page. (Measured:
// 13 instead of 10 GB/s a core.)
[[gnu::always_inline]] inline Turn turn_of(const Stream& s, const void* at) {
  constexpr std::ptrdiff_t kPage = 4096, kWindow = Turn::kLines * kPage;
  constexpr std::ptrdiff_t kRun = Turn::kLines * 64;
  const std::ptrdiff_t size = s.end - s.begin, from = static_cast<const std::byte*>(at) - s.begin;
  const std::ptrdiff_t i = (from + kRun - 1) / kRun * kRun, in_window = i % kWindow;
  const std::ptrdiff_t window = i - in_window + kWindow, line = in_window / Turn::kLines;
  if (window + kWindow <= size) return {s.begin + window + line, kPage};
  if (window >= size) return {s.next + (window - size + line), kPage};
  for (std::ptrdiff_t ahead = window + line; ahead < window + kWindow; ahead += kPage) {
    prefetch_far(ahead < size ? s.begin + ahead : s.next + (ahead - size));
  }
  return {s.begin + from, 0};
}

// All turns of the runs that begin in these bytes.
[[gnu::always_inline]] inline void ask_ahead(const Stream& s, const void* at, int bytes) {
  constexpr std::ptrdiff_t kRun = Turn::kLines * 64;
  const std::byte* from = static_cast<const std::byte*>(at);
  const std::byte* run = from + (kRun - (from - s.begin) % kRun) % kRun;
  for (; run < from + bytes; run += kRun) turn_of(s, run).ask_all();
}

// Rows of a target lie far apart, and waiting for them takes a fifth of the time of int8 products.
// Few at a time, so that they leave line buffers to what is multiplied.
[[gnu::always_inline]] inline void ask_rows(const Target& t, int row, int rows) {
  if (t.data == nullptr) return;
  for (int r = row; r < row + rows; ++r) {
    const float* p = t.data + r * t.stride;
    for (std::int64_t i = 0; i < t.columns; i += 16) prefetch_to_write(p + i);
  }
}

// A packed block of 32 rows; T as in load_weights.
template <class T>
struct Packed {
  using Vector = Wide;
  static constexpr int kLanesOf = kWideLanes;
  static constexpr int kVectors = 32 / kWideLanes;
  static constexpr int kAtOnce = sizeof(T) == 1 ? 2 : 1;         // k that fill a cache line
  static constexpr int kRun = 16 / static_cast<int>(sizeof(T));  // 512 bytes
  const T* data;
  Stream stream;
  [[gnu::always_inline]] Turn turn(std::int64_t k) const { return turn_of(stream, data + k * 32); }
  template <int kCount>
  void load(std::int64_t k, Vector* w) const {
    load_weights<kCount>(data + k * 32, w);
  }
};

// A: element k of row r. Rows that lie apart need a pointer each, of which there are few; a tile of
// many rows is packed, with all of one k side by side.
struct RowMajor {
  const float* data;
  std::ptrdiff_t stride;
  float operator()(int r, std::int64_t k) const { return data[r * stride + k]; }
};

template <int kStride>
struct Fixed {  // RowMajor with a stride that the compiler knows
  const float* data;
  float operator()(int r, std::int64_t k) const { return data[r * kStride + k]; }
};

template <int R>
struct Tile {
  const float* data;  // [k, R]
  float operator()(int r, std::int64_t k) const { return data[k * R + r]; }
};

// sum[r] += a[r, k ..] times kCount rows of b.
template <int kCount, int R, class A, class Strip>
inline void multiply_step(const A& a, const Strip& b, std::int64_t k,
                          typename Strip::Vector (&sum)[R][Strip::kVectors]) {
  using V = typename Strip::Vector;
  V w[kCount * Strip::kVectors];
  b.template load<kCount>(k, w);
#pragma GCC unroll 2
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V x = splat_of<V>(a(r, k + i));
#pragma GCC unroll 4
      for (int v = 0; v < Strip::kVectors; ++v) {
        sum[r][v] = fma(x, w[i * Strip::kVectors + v], sum[r][v]);
      }
    }
  }
}

// c[r, columns of b] (+)= sum over ascending k of a[r, k] b[k, column], one chain per element.
// Never inlined: several of these loops in one function leave the compiler short of registers.
template <int R, class A, class Strip>
[[gnu::noinline]] void multiply(A a, Strip b, std::int64_t depth, float* c, std::ptrdiff_t c_stride,
                                bool accumulate) {
  using V = typename Strip::Vector;
  constexpr int kVectors = Strip::kVectors, kLanesOf = Strip::kLanesOf;
  V sum[R][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = accumulate ? load_of<V>(c + r * c_stride + kLanesOf * v) : zero_of<V>();
    }
  }
  std::int64_t k = 0;
  for (; k + Strip::kRun <= depth; k += Strip::kRun) {
    const auto turn = b.turn(k);
    constexpr int kSteps = Strip::kRun / Strip::kAtOnce, kLines = decltype(turn)::kLines / kSteps;
#pragma GCC unroll 2
    for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kLines; ++j) turn.ask(i * kLines + j);
      multiply_step<Strip::kAtOnce>(a, b, k + i * Strip::kAtOnce, sum);
    }
  }
  for (; k + Strip::kAtOnce <= depth; k += Strip::kAtOnce) {
    multiply_step<Strip::kAtOnce>(a, b, k, sum);
  }
  if (k < depth) multiply_step<1>(a, b, k, sum);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(c + r * c_stride + kLanesOf * v, sum[r][v]);
  }
}

// fn(std::integral_constant<int, n>()), 1 <= n <= Most.
template <int Most, class Fn>
inline void with_constant(int n, Fn&& fn) {
  if (n == Most) {
    fn(std::integral_constant<int, Most>());
  } else if constexpr (Most > 1) {
    with_constant<Most - 1>(n, fn);
  }
}

// fn(first, size as a constant) for tiles of kMost rows; what is left is halved, so that no tile of
// one or two rows waits for itself.
template <int kMost, class Fn>
inline void even_tiles(int rows, Fn&& fn) {
  for (int row = 0, size = 0; row < rows; row += size) {
    const int left = rows - row;
    size = left <= kMost ? left : left < 2 * kMost ? (left + 1) / 2 : kMost;
    with_constant<kMost>(size, [&](auto constant) { fn(row, constant); });
  }
}

// The same for few sizes: R, then 8, 4, 3, 2 and 1.
template <int R, class Fn>
inline void tiles(int count, Fn&& fn) {
  constexpr int kNext = R > 8 ? 8 : R > 4 ? 4 : R - 1;
  int done = 0;
  for (; done + R <= count; done += R) fn(done, std::integral_constant<int, R>());
  if constexpr (R > 1) {
    if (done < count) {
      tiles<kNext>(count - done, [&](int i, auto size) { fn(done + i, size); });
    }
  }
}

}  // namespace mmengine::cpu::MM_LEVEL
