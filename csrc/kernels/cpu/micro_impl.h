// The one multiplication of this backend: a few rows of A times a strip of B, accumulators in
// registers. GEMM, attention scores and weighted values are all made of it. MM_SIMD names
// the level.
#pragma once

#include <cstddef>
#include <cstdint>

#include MM_SIMD

namespace mmengine::cpu::MM_LEVEL {

// Strips of B: load V vectors of row k. T is float or std::uint16_t (bf16).
template <class T, int V>
struct Rows {
  const T* data;
  std::ptrdiff_t stride;
  void operator()(std::int64_t k, F8* w) const {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[v] = load(data + k * stride + 8 * v);
  }
};

// A packed block of 32 rows; T as in load_weights. Hardware prefetchers stop at a page's end and
// the next block begins where this one ends: asking ahead is worth half of the speed of one row.
constexpr std::size_t kPrefetchBytes = 4096;

template <class T>
struct Packed {
  const T* data;
  void operator()(std::int64_t k, F8* w) const {
    const T* row = data + k * 32;
    for (std::size_t i = 0; i < 32 * sizeof(T); i += 64) {
      prefetch(reinterpret_cast<const char*>(row) + kPrefetchBytes + i);
    }
    load_weights(row, w);
  }
};

// c[r, 8 V] (+)= sum over ascending k of a[r, k] b[k, 8 V], one chain per element.
template <int R, int V, class Strip>
inline void multiply(const float* a, std::ptrdiff_t a_stride, Strip b, std::int64_t depth, float* c,
                     std::ptrdiff_t c_stride, bool accumulate) {
  F8 sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = accumulate ? load(c + r * c_stride + 8 * v) : zero();
  }
#pragma GCC unroll 2
  for (std::int64_t k = 0; k < depth; ++k) {
    F8 w[V];
    b(k, w);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F8 x = splat(a[r * a_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = fma(x, w[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(c + r * c_stride + 8 * v, sum[r][v]);
  }
}

}  // namespace mmengine::cpu::MM_LEVEL
