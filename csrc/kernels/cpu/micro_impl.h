// The one multiplication of this backend: a few rows of A times a strip of B, accumulators in
// registers. GEMM, attention scores and weighted values are all made of it. MM_SIMD names
// the level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include MM_SIMD

namespace mmengine::cpu::MM_LEVEL {

// Strips of B: row k of `Columns` columns as vectors. T is float or std::uint16_t (bf16).
// `ahead` bytes behind each row is what will be read next; 0: nothing to ask for.
template <class T, int Columns>
struct Rows {
  using Vector = std::conditional_t<Columns % kWideLanes == 0, Wide, F8>;
  static constexpr int kLanesOf = Columns % kWideLanes == 0 ? kWideLanes : 8;
  static constexpr int kVectors = Columns / kLanesOf;
  static constexpr int kAtOnce = 1;
  const T* data;
  std::ptrdiff_t stride;
  std::ptrdiff_t ahead = 0;
  template <int>
  void load(std::int64_t k, Vector* w) const {
    const T* row = data + k * stride;
    if (ahead != 0) prefetch(reinterpret_cast<const char*>(row) + ahead);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = load_of<Vector>(row + kLanesOf * v);
  }
};

// A packed block of 32 rows; T as in load_weights. Hardware prefetchers stop at a page's end and
// the next block begins where this one ends: asking ahead is worth half of the speed of one row.
constexpr std::size_t kPrefetchBytes = 4096;

template <class T>
struct Packed {
  using Vector = Wide;
  static constexpr int kLanesOf = kWideLanes;
  static constexpr int kVectors = 32 / kWideLanes;
  static constexpr int kAtOnce = sizeof(T) == 1 ? 2 : 1;  // k that fill a cache line
  const T* data;
  template <int kCount>
  void load(std::int64_t k, Vector* w) const {
    const T* row = data + k * 32;
    for (std::size_t i = 0; i < kCount * 32 * sizeof(T); i += 64) {
      prefetch(reinterpret_cast<const char*>(row) + kPrefetchBytes + i);
    }
    load_weights<kCount>(row, w);
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
template <int R, class A, class Strip>
inline void multiply(A a, Strip b, std::int64_t depth, float* c, std::ptrdiff_t c_stride,
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
#pragma GCC unroll 2
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

}  // namespace mmengine::cpu::MM_LEVEL
