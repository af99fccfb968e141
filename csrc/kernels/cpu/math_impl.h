// exp, lane by lane, and the ends of rows. MM_SIMD names the level.
#pragma once

#include <cstdint>

#include MM_SIMD

namespace mmengine::cpu::MM_LEVEL {

// The first n of eight values, zeros behind them; nothing else is read or written.
inline F8 load_first(const float* p, std::int64_t n) {
  if (n >= 8) return load(p);
  float lanes[8] = {};
  for (std::int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

inline void store_first(float* p, std::int64_t n, F8 a) {
  if (n >= 8) return store(p, a);
  float lanes[8];
  store(lanes, a);
  for (std::int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// e^x within 2 ulp, infinity above 88.72, subnormal results included, NaN to NaN. x = n ln 2 + r
// with |r| <= ln 2 / 2; (e^r - 1 - r) / r^2 by interpolation in Chebyshev nodes (error 1e-9).
template <class V>
inline V exp(V x) {
  const auto number = [](float value) { return splat_of<V>(value); };
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer in the low bits
  const V clamped = min(number(89.0f), max(number(-104.0f), x));
  const V t = fma(clamped, number(0x1.715476p+0f), number(kRound));
  const V n = t - number(kRound);
  const V r = fma(n, number(0x1.05c61p-29f), fma(n, number(-0x1.62e43p-1f), clamped));
  V p = number(0x1.a1256cp-13f);
  p = fma(p, r, number(0x1.6d43bp-10f));
  p = fma(p, r, number(0x1.1110ep-7f));
  p = fma(p, r, number(0x1.5554e8p-5f));
  p = fma(p, r, number(0x1.555556p-3f));
  p = fma(p, r, number(0.5f));
  return scale_by_power(fma(p * r, r, r) + number(1.0f), t);
}

}  // namespace mmengine::cpu::MM_LEVEL
