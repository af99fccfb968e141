// Element types, their sizes, and scalar conversions: bf16, f16 and e4m3 <-> f32, exact one way and
// round-to-nearest-even the other. E4M3FN: 1-4-3 bits, bias 7, largest finite 448, no infinities,
// NaN = 0x7f / 0xff (model-spec 2.3).
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace mmengine {

enum class DType : std::uint8_t { f32, bf16, f16, e4m3, i8, u8, u16, i32, u32, i64 };

constexpr std::size_t dtype_bytes(DType t) {
  switch (t) {
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
    case DType::u32:
      return 4;
    case DType::bf16:
    case DType::f16:
    case DType::u16:
      return 2;
    case DType::e4m3:
    case DType::i8:
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr const char* dtype_name(DType t) {
  constexpr const char* names[] = {"f32", "bf16", "f16", "e4m3", "i8",
                                   "u8",  "u16",  "i32", "u32",  "i64"};
  return names[static_cast<int>(t)];
}

inline float bf16_to_f32(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  // The exponent moves from bias 15 to bias 127 by a multiplication, which also normalises.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

// More than the largest f16 becomes infinity; NaN stays NaN.
inline std::uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: beside 0.5 the last bit counts 2^-24
    const float beside = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(beside) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - ((127u - 15u) << 23)) >> 13));
}

inline float e4m3_to_f32(std::uint8_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24;
  const std::uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7fu) return std::numeric_limits<float>::quiet_NaN();
  const float scaled = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

constexpr float kMaxE4m3 = 448.0f;

// The scale of values that lie in +-largest: the largest code stands for it. Not so small that
// dividing by it would lose bits. static: kernels of several instruction sets use it.
static inline float e4m3_scale(float largest) {
  const float scale = largest / kMaxE4m3;
  return largest == 0 ? 1.0f : scale < 0x1p-126f ? 0x1p-126f : scale;
}

// Saturates to +-448; NaN stays NaN.
inline std::uint8_t f32_to_e4m3(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint8_t>((bits >> 24) & 0x80u);
  float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<std::uint8_t>(sign | 0x7fu);
  if (magnitude >= kMaxE4m3) return static_cast<std::uint8_t>(sign | 0x7eu);
  if (magnitude < 0x1p-6f) {  // subnormal: a multiple of 2^-9, ties to even
    return static_cast<std::uint8_t>(sign | static_cast<unsigned>(std::nearbyint(magnitude * 512)));
  }
  const auto m = std::bit_cast<std::uint32_t>(magnitude);
  const std::uint32_t rounded = m + 0x7ffffu + ((m >> 20) & 1u);
  return static_cast<std::uint8_t>(sign | ((rounded >> 20) - ((127u - 7u) << 3)));
}

}  // namespace mmengine
