#include "backend/group_codes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>

#include "base/dtype.h"
#include "kernels/params.h"

namespace mmengine {
namespace {

// All loops run over a whole group without a branch, for a compiler with vectors of any width.
using Group = std::array<float, kGroup>;

constexpr std::int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
constexpr std::uint16_t kHalfInfinity = 0x7c00;

std::int32_t bits_of(float value) { return std::bit_cast<std::int32_t>(value); }

// Padding repeats the first weight: it moves neither the largest nor the least.
Group padded(const float* w, std::int64_t count) {
  Group group;
  if (count == kGroup) {
    std::copy_n(w, kGroup, group.begin());
  } else {
    group.fill(w[0]);
    std::copy_n(w, count, group.begin());
  }
  return group;
}

// Bits of non-negative floats are ordered as the floats are, NaN above all.
std::int32_t largest_magnitude(const Group& w) {
  std::int32_t largest = 0;
  for (float v : w) largest = std::max(largest, bits_of(v) & kMagnitude);
  return largest;
}

// An integer that is ordered as the floats are, and back: the bits below the sign of negative ones
// are flipped.
std::int32_t ordered(std::int32_t bits) { return bits ^ ((bits >> 31) & kMagnitude); }

float least(const Group& w) {
  std::int32_t key = ordered(kInfinity);
  for (float v : w) key = std::min(key, ordered(bits_of(v)));
  return std::bit_cast<float>(ordered(key)) + 0.0f;  // no -0
}

float greatest(const Group& w) {
  std::int32_t key = ordered(bits_of(w[0]));
  for (float v : w) key = std::max(key, ordered(bits_of(v)));
  return std::bit_cast<float>(ordered(key)) + 0.0f;
}

// Adding 1.5 * 2^23 leaves the nearest integer in the low bits, ties to even, and bits of floats
// are ordered as the floats are: clamped as integers, their low byte is the code, negative ones in
// two's complement.
constexpr float kRound = 12582912.0f;

std::uint8_t code_of(float quotient, std::int32_t low, std::int32_t high) {
  const std::int32_t zero = std::bit_cast<std::int32_t>(kRound);
  const std::int32_t rounded = bits_of(quotient + kRound);
  return static_cast<std::uint8_t>(std::min(std::max(rounded, zero + low), zero + high));
}

bool infinite(std::uint16_t half) { return (half & 0x7fffu) == kHalfInfinity; }

void clear(std::uint8_t* codes) { std::fill_n(codes, kGroup, std::uint8_t{0}); }

}  // namespace

GroupScale quantise_int8(const float* w, std::int64_t count, std::uint8_t* codes) {
  const Group group = padded(w, count);
  const std::int32_t largest = largest_magnitude(group);
  if (largest >= kInfinity) {
    clear(codes);
    return {kHalfNaN, 0};
  }
  const GroupScale out{f32_to_f16(std::bit_cast<float>(largest) / 127.0f), 0};
  if (infinite(out.scale)) return out;
  const float scale = f16_to_f32(out.scale);
  if (scale == 0) {
    clear(codes);
    return out;
  }
  for (std::size_t i = 0; i < kGroup; ++i) codes[i] = code_of(group[i] / scale, -127, 127);
  std::fill(codes + count, codes + kGroup, std::uint8_t{0});
  return out;
}

GroupScale quantise_int4(const float* w, std::int64_t count, std::uint8_t* codes) {
  const Group group = padded(w, count);
  if (largest_magnitude(group) >= kInfinity) {
    clear(codes);
    return {kHalfNaN, 0};
  }
  const float low = least(group);
  const GroupScale out{f32_to_f16((greatest(group) - low) / 15.0f), f32_to_f16(low)};
  if (infinite(out.scale) || infinite(out.min)) return out;
  const float scale = f16_to_f32(out.scale), min = f16_to_f32(out.min);
  if (scale == 0) {
    clear(codes);
    return out;
  }
  for (std::size_t i = 0; i < kGroup; ++i) codes[i] = code_of((group[i] - min) / scale, 0, 15);
  std::fill(codes + count, codes + kGroup, std::uint8_t{0});
  return out;
}

}  // namespace mmengine
