// One row of a matrix as its file has it -> f32, whatever the dtype. Plain loops over one type
// each, so that a row costs little more than reading it.
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace mmengine {

// Row `row` of the part, k values. e4m3: the codes' values, without the scale of the row. Groups:
// d code, and for int4 plus m, each rounded to f32.
void read_values(const HostWeight::Part& part, std::int64_t row, std::int64_t k, float* out);

// The row's codes of i8 or u8, one a byte, as in kernels/params.h; whole groups, 0 beyond k.
void read_codes(const HostWeight::Part& part, std::int64_t row, std::int64_t k,
                std::uint8_t* codes);

}  // namespace mmengine
