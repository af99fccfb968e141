// The level of AVX-512 (F, BW, DQ, VL, VNNI): products are made sixteen lanes wide (F16), all else
// as on the other levels.
#pragma once

#define MM_LEVEL avx512

#include "kernels/cpu/simd_x86.h"
#include "kernels/params.h"

namespace mmengine::cpu::avx512 {

struct F16 {
  __m512 v;
};

inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }

inline F16 first(std::int64_t n, F16 a, F16 b) {
  const unsigned keep = n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1;
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(keep), b.v, a.v)};
}

inline F16 scale_by_power(F16 a, F16 t) {
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t.v), _mm512_set1_epi32(0x4b400000));
  const __m512i half = _mm512_srai_epi32(n, 1), rest = _mm512_sub_epi32(n, half);
  const auto power = [](__m512i e) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(127)), 23));
  };
  return {_mm512_mul_ps(_mm512_mul_ps(a.v, power(half)), power(rest))};
}

// The eight lanes at 8 i of a row of vectors.
inline F8 eight(const F16* row, int i) {
  return {i % 2 == 0 ? _mm512_castps512_ps256(row[i / 2].v)
                     : _mm512_extractf32x8_ps(row[i / 2].v, 1)};
}

inline float sum(F16 a) {
  return sum(F8{_mm512_castps512_ps256(a.v)} + F8{_mm512_extractf32x8_ps(a.v, 1)});
}

using Wide = F16;
constexpr int kWideLanes = 16;
constexpr int kTileRows = 12;  // 12 rows x 32 columns of sums fill 24 of 32 registers
constexpr int kStripColumns = 32;
constexpr int kStreamTile = 8;  // rows of x for each decoded weight: 16 sums, 4 weights

template <class V>
inline V zero_of() {
  return zero();
}
template <>
inline F16 zero_of<F16>() {
  return {_mm512_setzero_ps()};
}
template <class V>
inline V splat_of(float x) {
  return splat(x);
}
template <>
inline F16 splat_of<F16>(float x) {
  return {_mm512_set1_ps(x)};
}
template <class V>
inline V load_of(const float* p) {
  return load(p);
}
template <>
inline F16 load_of<F16>(const float* p) {
  return {_mm512_loadu_ps(p)};
}
template <class V>
inline V load_of(const std::uint16_t* p) {  // bf16
  return load(p);
}
template <>
inline F16 load_of<F16>(const std::uint16_t* p) {
  const __m512i wide =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

// The packed weights (layout.h) of kCount k -> 2 vectors each in lane order. fp8 gives value / 256:
// an e4m3 code put under f16's wider exponent. (Shifts to f32 alone would be cheaper, but leave
// subnormal codes subnormal, and a multiply-add with one of those takes 130 cycles.)
template <int kCount>
inline void load_weights(const float* p, F16* w) {
  for (int i = 0; i < 2; ++i) w[i] = load_of<F16>(p + 16 * i);
}

template <int kCount>
inline void load_weights(const std::uint16_t* p, F16* w) {
  const __m512i top = _mm512_set1_epi32(static_cast<std::int32_t>(0xffff0000u));
  const __m512i pair = _mm512_loadu_si512(p);
  w[0].v = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
  w[1].v = _mm512_castsi512_ps(_mm512_and_si512(pair, top));
}

template <int kCount>
inline void load_weights(const std::uint8_t* p, F16* w) {
  const __m512i mask = _mm512_set1_epi16(static_cast<std::int16_t>(0xbf80u));
  const __m512i pair =
      kCount == 2 ? _mm512_loadu_si512(p)
                  : _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i low = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(pair, 8), 1), mask);
  const __m512i high = _mm512_and_si512(_mm512_srai_epi16(pair, 1), mask);
  w[0].v = _mm512_cvtph_ps(_mm512_castsi512_si256(low));
  w[1].v = _mm512_cvtph_ps(_mm512_castsi512_si256(high));
  if constexpr (kCount == 2) {
    w[2].v = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(low, 1));
    w[3].v = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(high, 1));
  }
}

// ---- products of small integers (group_impl.h) ----------------------------------------------

using Bytes = __m512i;
constexpr int kGroupRows = 6;  // 6 rows x 32 columns: whole and f32 sums fill 24 of 32 registers
constexpr int kByteChains = 12;

inline Bytes load_bytes(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes splat_bytes(const std::int8_t* four) {
  std::int32_t word;
  __builtin_memcpy(&word, four, sizeof(word));
  return _mm512_set1_epi32(word);
}
inline Bytes low_codes(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(0xf)); }
inline Bytes high_codes(Bytes a) { return low_codes(_mm512_srli_epi16(a, 4)); }
inline F16 load_halves(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

template <WeightFormat>
struct Dot {
  using Sums = __m512i;
  static Sums start(std::int32_t n) { return _mm512_set1_epi32(n); }
  static Sums add(Sums s, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(s, w, x); }
  static F16 finish(Sums s) { return {_mm512_cvtepi32_ps(s)}; }
};

}  // namespace mmengine::cpu::avx512
