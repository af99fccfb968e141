// exp on eight lanes. MM_SIMD names the level.
#pragma once

#include <cstdint>

#include MM_SIMD

namespace mmengine::cpu::MM_LEVEL {

// e^x within 2 ulp, infinity above 88.72, subnormal results included, NaN to NaN. x = n ln 2 + r
// with |r| <= ln 2 / 2; (e^r - 1 - r) / r^2 by interpolation in Chebyshev nodes (error 1e-9).
inline F8 exp(F8 x) {
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer in the low bits
  const F8 clamped = min(splat(89.0f), max(splat(-104.0f), x));
  const F8 t = fma(clamped, splat(0x1.715476p+0f), splat(kRound));
  const F8 n = t - splat(kRound);
  const F8 r = fma(n, splat(0x1.05c61p-29f), fma(n, splat(-0x1.62e43p-1f), clamped));
  F8 p = splat(0x1.a1256cp-13f);
  p = fma(p, r, splat(0x1.6d43bp-10f));
  p = fma(p, r, splat(0x1.1110ep-7f));
  p = fma(p, r, splat(0x1.5554e8p-5f));
  p = fma(p, r, splat(0x1.555556p-3f));
  p = fma(p, r, splat(0.5f));
  return scale_by_power(fma(p * r, r, r) + splat(1.0f), t);
}

}  // namespace mmengine::cpu::MM_LEVEL
