// F8: eight f32 lanes in a 256-bit register, for every level of x86. Same interface and same bits
// as simd_scalar.h. Included by simd_<level>.h, which names the namespace (MM_LEVEL): no function
// compiled for one instruction set is ever chosen by the linker for another.
#pragma once

#include <immintrin.h>

#include <cstdint>

#ifdef __AVX512F__
#define MM_REGISTER "+v"
#else
#define MM_REGISTER "+x"
#endif

namespace mmengine::cpu::MM_LEVEL {

struct F8 {
  __m256 v;
};

inline F8 zero() { return {_mm256_setzero_ps()}; }
inline F8 splat(float x) { return {_mm256_set1_ps(x)}; }
inline F8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, F8 a) { _mm256_storeu_ps(p, a.v); }
inline F8 load(const std::uint16_t* p) {  // bf16
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}

inline F8 operator+(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F8 operator-(F8 a, F8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F8 operator*(F8 a, F8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F8 operator/(F8 a, F8 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F8 max(F8 a, F8 b) { return {_mm256_max_ps(a.v, b.v)}; }  // a > b ? a : b
inline F8 min(F8 a, F8 b) { return {_mm256_min_ps(a.v, b.v)}; }  // a < b ? a : b

// Lanes below n of a, the others of b.
inline F8 first(std::int64_t n, F8 a, F8 b) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i keep =
      _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<std::int32_t>(n > 8 ? 8 : n)), lane);
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(keep))};
}

inline float sum(F8 a) {  // ((0+4)+(2+6)) + ((1+5)+(3+7))
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float highest(F8 a) {  // the same tree
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// To the nearest e4m3 value, ties to even; |a| <= 448 or NaN.
inline F8 round_to_e4m3(F8 a) {
  const __m256 sign = _mm256_and_ps(a.v, _mm256_set1_ps(-0.0f));
  const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v);
  const __m256i bits = _mm256_castps_si256(magnitude);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
  const __m256i kept = _mm256_and_si256(up, _mm256_set1_epi32(static_cast<int>(0xfff00000u)));
  // Below the normal numbers the steps are 2^-9, the last place of 2^14.
  const __m256 base = _mm256_set1_ps(0x1.8p14f);
  const __m256 step = _mm256_sub_ps(_mm256_add_ps(magnitude, base), base);
  const __m256 subnormal = _mm256_cmp_ps(magnitude, _mm256_set1_ps(0x1p-6f), _CMP_LT_OQ);
  const __m256 rounded = _mm256_blendv_ps(_mm256_castsi256_ps(kept), step, subnormal);
  const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  return {_mm256_blendv_ps(_mm256_or_ps(rounded, sign), a.v, nan)};
}

// a * 2^n, where t = n + 1.5 * 2^23.
inline F8 scale_by_power(F8 a, F8 t) {
  const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t.v), _mm256_set1_epi32(0x4b400000));
  const __m256i half = _mm256_srai_epi32(n, 1), rest = _mm256_sub_epi32(n, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i p = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i q = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, _mm256_castsi256_ps(p)), _mm256_castsi256_ps(q))};
}

// n e4m3 codes -> value / 256, in order, by the way of f16 as above; n is a multiple of 32.
inline void widen(const std::uint8_t* codes, std::int64_t n, float* out) {
  const __m256i mask = _mm256_set1_epi16(static_cast<std::int16_t>(0xbf80u));
  __m256i largest = _mm256_setzero_si256();  // of the codes without their signs
  for (std::int64_t i = 0; i < n; i += 32) {
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
    largest = _mm256_max_epu8(largest, _mm256_add_epi8(c, c));
    const __m256i low = _mm256_unpacklo_epi8(_mm256_setzero_si256(), c);  // codes 0-7, 16-23
    const __m256i high = _mm256_unpackhi_epi8(_mm256_setzero_si256(), c);
    const __m256i a = _mm256_and_si256(_mm256_srai_epi16(low, 1), mask);
    const __m256i b = _mm256_and_si256(_mm256_srai_epi16(high, 1), mask);
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm256_castsi256_si128(a)));
    _mm256_storeu_ps(out + i + 8, _mm256_cvtph_ps(_mm256_castsi256_si128(b)));
    _mm256_storeu_ps(out + i + 16, _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
    _mm256_storeu_ps(out + i + 24, _mm256_cvtph_ps(_mm256_extracti128_si256(b, 1)));
  }
  const __m256i nan = _mm256_cmpeq_epi8(largest, _mm256_set1_epi8(static_cast<char>(0xfeu)));
  if (_mm256_testz_si256(nan, nan)) return;
  for (std::int64_t i = 0; i < n; ++i) {
    if ((codes[i] & 0x7fu) == 0x7fu) out[i] = __builtin_nanf("");
  }
}

// always_inline here and in every function that only asks for memory: GCC takes what it does not
// inline at once for a function without effects, and leaves the call out.
[[gnu::always_inline]] inline void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
[[gnu::always_inline]] inline void prefetch_far(const void* p) {  // into the second-level cache
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}
[[gnu::always_inline]] inline void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1); }

inline float square_root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

// Makes a value unknown to the compiler, which then computes with it again.
template <class Register>
inline void renew(Register& value) {
  asm volatile("" : MM_REGISTER(value));
}

inline void store_four(float* p, F8 a) { _mm_storeu_ps(p, _mm256_castps256_ps128(a.v)); }

// Rows and columns of eight vectors exchanged.
inline void transpose(F8* v) {
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(v[i].v, v[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_ps(v[i].v, v[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    v[i].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    v[i + 4].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

// The largest magnitude of 32 values, NaN if one of them is not finite.
inline float magnitude(const F8* x) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  __m256i top = _mm256_setzero_si256();  // magnitudes are in the order of their bits
  for (int i = 0; i < 4; ++i) {
    top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(x[i].v), mask));
  }
  __m128i t = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
  t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1));
  if (_mm_cvtsi128_si32(t) >= 0x7f800000) return __builtin_nanf("");
  return _mm_cvtss_f32(_mm_castsi128_ps(t));
}

// Rounds 32 values in +-127 to whole numbers, ties to even; returns their sum.
inline std::int32_t store_codes(std::int8_t* out, const F8* x) {
  const auto code = [&](int i) { return _mm256_cvtps_epi32(x[i].v); };
  const __m256i low = _mm256_packs_epi32(code(0), code(1));  // within halves of the register
  const __m256i high = _mm256_packs_epi32(code(2), code(3));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                      _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
  const __m256i sums = _mm256_madd_epi16(_mm256_add_epi16(low, high), _mm256_set1_epi16(1));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

}  // namespace mmengine::cpu::MM_LEVEL
