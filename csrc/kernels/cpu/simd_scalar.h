// F8: eight f32 lanes in plain C++, for machines without AVX2. Same interface and same bits as
// simd_avx2.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/dtype.h"

#define MM_LEVEL scalar

namespace mmengine::cpu::scalar {

struct F8 {
  float v[8];
};

template <class Fn>
inline F8 each(Fn fn) {
  F8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = fn(i);
  return r;
}

inline F8 zero() { return F8{}; }
inline F8 splat(float x) {
  return each([=](int) { return x; });
}
inline F8 load(const float* p) {
  return each([=](int i) { return p[i]; });
}
inline void store(float* p, F8 a) {
  for (int i = 0; i < 8; ++i) p[i] = a.v[i];
}
inline F8 load(const std::uint16_t* p) {
  return each([=](int i) { return bf16_to_f32(p[i]); });
}

inline F8 operator+(F8 a, F8 b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline F8 operator-(F8 a, F8 b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline F8 operator*(F8 a, F8 b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline F8 operator/(F8 a, F8 b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
inline F8 fma(F8 a, F8 b, F8 c) {
  return each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
inline F8 max(F8 a, F8 b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F8 min(F8 a, F8 b) {
  return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}

inline F8 first(std::int64_t n, F8 a, F8 b) {
  return each([&](int i) { return i < n ? a.v[i] : b.v[i]; });
}

inline float sum(F8 a) {
  const float* v = a.v;
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

inline float highest(F8 a) {
  const auto larger = [](float x, float y) { return x > y ? x : y; };
  const float* v = a.v;
  return larger(larger(larger(v[0], v[4]), larger(v[2], v[6])),
                larger(larger(v[1], v[5]), larger(v[3], v[7])));
}

inline F8 round_to_e4m3(F8 a) {
  return each([&](int i) { return e4m3_to_f32(f32_to_e4m3(a.v[i])); });
}

inline F8 scale_by_power(F8 a, F8 t) {
  return each([&](int i) {
    const auto n = static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(t.v[i]) - 0x4b400000u);
    const std::int32_t half = n >> 1, rest = n - half;
    const auto power = [](std::int32_t e) {
      return std::bit_cast<float>(static_cast<std::uint32_t>(e + 127) << 23);
    };
    return a.v[i] * power(half) * power(rest);
  });
}

inline void load_weights(const float* p, F8* w) {
  for (int i = 0; i < 4; ++i) w[i] = load(p + 8 * i);
}

inline void load_weights(const std::uint16_t* p, F8* w) {
  for (int i = 0; i < 4; ++i) {
    const std::uint16_t* half = p + i / 2 * 16 + i % 2;
    w[i] = each([=](int j) { return bf16_to_f32(half[2 * j]); });
  }
}

inline void load_weights(const std::uint8_t* p, F8* w) {
  for (int i = 0; i < 4; ++i) {
    const std::uint8_t* byte = p + i % 2 * 16 + i / 2;
    w[i] = each([=](int j) { return e4m3_to_f32(byte[2 * j]) * 0x1p-8f; });
  }
}

inline void widen(const std::uint8_t* codes, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = e4m3_to_f32(codes[i]) * 0x1p-8f;
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }

inline float square_root(float x) { return std::sqrt(x); }

}  // namespace mmengine::cpu::scalar
