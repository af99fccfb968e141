// The level of AVX2, FMA and F16C: products are made eight lanes wide.
#pragma once

#define MM_LEVEL avx2

#include "kernels/cpu/simd_x86.h"
#include "kernels/params.h"

namespace mmengine::cpu::avx2 {

using Wide = F8;
constexpr int kWideLanes = 8;
constexpr int kTileRows = 6;  // 6 rows x 16 columns of sums fill 12 of 16 registers
constexpr int kStripColumns = 16;
constexpr int kStreamTile = 2;  // rows of x for each decoded weight: 8 sums, 8 weights

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

// The packed weights (layout.h) of kCount k -> 4 vectors each in lane order. fp8 gives value / 256:
// an e4m3 code put under f16's wider exponent, subnormals included.
template <int kCount>
inline void load_weights(const float* p, F8* w) {
  for (int i = 0; i < 4; ++i) w[i] = load(p + 8 * i);
}

template <int kCount>
inline void load_weights(const std::uint16_t* p, F8* w) {
  const __m256i top = _mm256_set1_epi32(static_cast<std::int32_t>(0xffff0000u));
  for (int i = 0; i < 2; ++i) {
    const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16 * i));
    w[i].v = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
    w[i + 2].v = _mm256_castsi256_ps(_mm256_and_si256(pair, top));
  }
}

inline void load_codes_of(const std::uint8_t* p, F8* w) {
  const __m256i mask = _mm256_set1_epi16(static_cast<std::int16_t>(0xbf80u));
  const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i low = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(pair, 8), 1), mask);
  const __m256i high = _mm256_and_si256(_mm256_srai_epi16(pair, 1), mask);
  w[0].v = _mm256_cvtph_ps(_mm256_castsi256_si128(low));
  w[1].v = _mm256_cvtph_ps(_mm256_extracti128_si256(low, 1));
  w[2].v = _mm256_cvtph_ps(_mm256_castsi256_si128(high));
  w[3].v = _mm256_cvtph_ps(_mm256_extracti128_si256(high, 1));
}

template <int kCount>
inline void load_weights(const std::uint8_t* p, F8* w) {
  for (int i = 0; i < kCount; ++i) load_codes_of(p + 32 * i, w + 4 * i);
}

// ---- products of small integers (group_impl.h) ----------------------------------------------

using Bytes = __m256i;
constexpr int kGroupRows = 2;  // 2 rows x 16 columns: whole and f32 sums fill 8 of 16 registers
constexpr int kByteChains = 8;

inline Bytes load_bytes(const std::uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Bytes splat_bytes(const std::int8_t* four) {
  std::int32_t word;
  __builtin_memcpy(&word, four, sizeof(word));
  return _mm256_set1_epi32(word);
}
inline Bytes low_codes(Bytes a) { return _mm256_and_si256(a, _mm256_set1_epi8(0xf)); }
inline Bytes high_codes(Bytes a) { return low_codes(_mm256_srli_epi16(a, 4)); }
inline F8 load_halves(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

// int8: the sign of w + 128 - 128 goes to x, so that pairs of products fit 16 bits.
template <WeightFormat>
struct Dot {
  using Sums = __m256i;
  static Sums start(std::int32_t) { return _mm256_setzero_si256(); }
  static Sums add(Sums s, Bytes w, Bytes x) {
    const __m256i code = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(x, code));
    return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static F8 finish(Sums s) { return {_mm256_cvtepi32_ps(s)}; }
};

// int4: eight pairs of products, 15 * 127 at most each, still fit 16 bits.
template <>
struct Dot<WeightFormat::int4> {
  using Sums = __m256i;
  static Sums start(std::int32_t) { return _mm256_setzero_si256(); }
  static Sums add(Sums s, Bytes w, Bytes x) {
    return _mm256_add_epi16(s, _mm256_maddubs_epi16(w, x));
  }
  static F8 finish(Sums s) {
    return {_mm256_cvtepi32_ps(_mm256_madd_epi16(s, _mm256_set1_epi16(1)))};
  }
};

}  // namespace mmengine::cpu::avx2
