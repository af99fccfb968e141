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
// are loaded at once, and each kRun k may ask memory for more.
template <class T, int Columns>
struct Rows {
  using Vector = std::conditional_t<Columns % kWideLanes == 0, Wide, F8>;
  static constexpr int kLanesOf = Columns % kWideLanes == 0 ? kWideLanes : 8;
  static constexpr int kVectors = Columns / kLanesOf;
  static constexpr int kAtOnce = 1, kRun = 2;
  const T* data;
  std::ptrdiff_t stride;
  void ask(std::int64_t) const {}
  template <int>
  void load(std::int64_t k, Vector* w) const {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = load_of<Vector>(data + k * stride + kLanesOf * v);
  }
};

// On behalf of `bytes` bytes from `at` on, asks for what comes 32 KiB later in a stream, eight
// pages in turn: the line buffers of a core keep too little of one run of addresses on its way, and
// the prefetchers of the second-level cache, which add theirs, follow one run in each page.
// (Measured: 13 instead of 10 GB/s a core.) Eight lines at once, so that finding them costs little.
[[gnu::always_inline]] inline void ask_ahead(const Stream& s, const void* at, std::size_t bytes) {
  constexpr std::uintptr_t kLine = 64, kPage = 4096, kPages = 8, kRun = kPages * kLine;
  const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const std::uintptr_t size = address(s.end) - address(s.begin),
                       from = address(at) - address(s.begin);
  for (std::uintptr_t i = (from + kRun - 1) / kRun * kRun; i < from + bytes; i += kRun) {
    const std::uintptr_t in_pages = i % (kPages * kPage);
    const std::uintptr_t ahead = i - in_pages + kPages * kPage + in_pages / kPages;
    const std::uintptr_t here = address(s.begin), behind = address(s.next) - size;
    if (ahead + kPages * kPage <= size) [[likely]] {
#pragma GCC unroll 8
      for (std::uintptr_t page = 0; page < kPages; ++page) {
        prefetch_far(reinterpret_cast<const void*>(here + ahead + page * kPage));
      }
    } else {
      for (std::uintptr_t target = ahead; target < ahead + kPages * kPage; target += kPage) {
        prefetch_far(reinterpret_cast<const void*>((target < size ? here : behind) + target));
      }
    }
  }
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
  static constexpr int kAtOnce = sizeof(T) == 1 ? 2 : 1;  // k that fill a cache line
  static constexpr int kRun = 16 / static_cast<int>(sizeof(T));
  const T* data;
  Stream stream;
  [[gnu::always_inline]] void ask(std::int64_t k) const {
    ask_ahead(stream, data + k * 32, kRun * 32 * sizeof(T));
  }
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
    b.ask(k);
#pragma GCC unroll 2
    for (int i = 0; i < Strip::kRun; i += Strip::kAtOnce) {
      multiply_step<Strip::kAtOnce>(a, b, k + i, sum);
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
