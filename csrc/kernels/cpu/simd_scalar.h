// F8: eight f32 lanes in plain C++, for machines without AVX2. Same interface and same bits as
// simd_x86.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include "base/dtype.h"
#include "kernels/params.h"

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

using Wide = F8;
constexpr int kWideLanes = 8;
constexpr int kTileRows = 6;
constexpr int kStreamTile = 2;
constexpr int kStripColumns = 16;

inline F8 eight(const F8* row, int i) { return row[i]; }

template <class V>
inline V zero_of() {
  return zero();
}
template <class V>
inline V splat_of(float x) {
  return splat(x);
}
template <class V, class T>
inline V load_of(const T* p) {
  return load(p);
}

template <int kCount>
inline void load_weights(const float* p, F8* w) {
  for (int i = 0; i < 4; ++i) w[i] = load(p + 8 * i);
}

template <int kCount>
inline void load_weights(const std::uint16_t* p, F8* w) {
  for (int i = 0; i < 4; ++i) {
    const std::uint16_t* half = p + i % 2 * 16 + i / 2;
    w[i] = each([=](int j) { return bf16_to_f32(half[2 * j]); });
  }
}

inline void load_codes_of(const std::uint8_t* p, F8* w) {
  for (int i = 0; i < 4; ++i) {
    const std::uint8_t* byte = p + i % 2 * 16 + i / 2;
    w[i] = each([=](int j) { return e4m3_to_f32(byte[2 * j]) * 0x1p-8f; });
  }
}

template <int kCount>
inline void load_weights(const std::uint8_t* p, F8* w) {
  for (int i = 0; i < kCount; ++i) load_codes_of(p + 32 * i, w + 4 * i);
}

inline void widen(const std::uint8_t* codes, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = e4m3_to_f32(codes[i]) * 0x1p-8f;
}

[[gnu::always_inline]] inline void prefetch(const void* p) { __builtin_prefetch(p); }
[[gnu::always_inline]] inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }
[[gnu::always_inline]] inline void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1); }

inline float square_root(float x) { return std::sqrt(x); }

inline void store_four(float* p, F8 a) {
  for (int i = 0; i < 4; ++i) p[i] = a.v[i];
}

inline void transpose(F8* v) {
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < i; ++j) std::swap(v[i].v[j], v[j].v[i]);
  }
}

template <class Value>
inline void renew(Value& value) {
  asm volatile("" : "+m"(value));
}

inline float magnitude(const F8* x) {
  float top = 0;
  for (int i = 0; i < 32; ++i) {
    const float v = std::fabs(x[i / 8].v[i % 8]);
    if (!std::isfinite(v)) return __builtin_nanf("");
    top = v > top ? v : top;
  }
  return top;
}

inline std::int32_t store_codes(std::int8_t* out, const F8* x) {
  std::int32_t sum = 0;
  for (int i = 0; i < 32; ++i) {
    out[i] = static_cast<std::int8_t>(std::nearbyint(x[i / 8].v[i % 8]));
    sum += out[i];
  }
  return sum;
}

struct Bytes {
  std::uint8_t v[32];
};
struct Ints {
  std::int32_t v[8];
};
constexpr int kGroupRows = 1;
constexpr int kByteChains = 4;

inline Bytes load_bytes(const std::uint8_t* p) {
  Bytes b;
  for (int i = 0; i < 32; ++i) b.v[i] = p[i];
  return b;
}
inline Bytes splat_bytes(const std::int8_t* four) {
  Bytes b;
  for (int i = 0; i < 32; ++i) b.v[i] = static_cast<std::uint8_t>(four[i % 4]);
  return b;
}
inline Bytes low_codes(Bytes a) {
  for (std::uint8_t& v : a.v) v &= 0xfu;
  return a;
}
inline Bytes high_codes(Bytes a) {
  for (std::uint8_t& v : a.v) v = static_cast<std::uint8_t>(v >> 4);
  return a;
}
inline F8 load_halves(const std::uint16_t* p) {
  return each([=](int i) { return f16_to_f32(p[i]); });
}

template <WeightFormat>
struct Dot {
  using Sums = Ints;
  static Sums start(std::int32_t n) {
    Sums s;
    for (std::int32_t& v : s.v) v = n;
    return s;
  }
  static Sums add(Sums s, const Bytes& w, const Bytes& x) {
    for (int i = 0; i < 32; ++i) s.v[i / 4] += w.v[i] * static_cast<std::int8_t>(x.v[i]);
    return s;
  }
  static F8 finish(const Sums& s) {
    return each([&](int i) { return static_cast<float>(s.v[i]); });
  }
};

}  // namespace mmengine::cpu::scalar
