// Quantising weights to the groups of int8 and int4 (params.h): the same bits from every program
// that follows these formulas, in f32 arithmetic that rounds to nearest, ties to even:
//   int8: d = f16(max|w| / 127), code = w / d, rounded and clamped to +-127
//   int4: m = f16(min w), d = f16((max w - min w) / 15), code = (w - m) / d, rounded, 0 .. 15
// d = 0: all codes 0. Padding counts for nothing and has the code 0.
#pragma once

#include <cstdint>

namespace mmengine {

constexpr std::uint16_t kHalfNaN = 0x7e00;  // scale of a group that is not finite

struct GroupScale {  // f16 bits
  std::uint16_t scale = 0, min = 0;
};

// 1 <= count <= kGroup weights -> kGroup codes (int8: signed). A weight that is not finite gives
// scale NaN, min 0 and codes 0. A scale or minimum that f16 cannot hold is infinite, codes are then
// not written.
GroupScale quantise_int8(const float* w, std::int64_t count, std::uint8_t* codes);
GroupScale quantise_int4(const float* w, std::int64_t count, std::uint8_t* codes);

}  // namespace mmengine
