// What the parts of a packed weight must be, and the words in which a part of a file is refused.
// A part that does not fit its spec is a bug of the caller; numbers that a file should not have are
// Error{model_format} naming source and element.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/group_codes.h"

namespace mmengine {

// Shapes, dtypes and the order of rows against the spec.
void check_part(const HostWeight::Part& part, const WeightSpec& spec);
// The row scales of e4m3: "scale" for one that is not positive (0 may be that of a row), or too
// large for what packed weights make of it. Those that are not finite pass under allow_nonfinite.
void check_row_scales(const HostWeight::Part& part, float input_scale, bool allow_nonfinite);
// The largest of the parts' fixed scales.
float checked_input_scale(const HostWeight& host);

// Of row `row` of the part: "non_finite".
void check_finite(const HostWeight::Part& part, std::int64_t row, const std::vector<float>& values);
// Stored scales and minima of a row's groups: "non_finite" unless that is allowed; "scale" for a
// negative scale, which no quantiser makes.
void check_stored_groups(const HostWeight::Part& part, std::int64_t row, std::int64_t groups,
                         bool allow_nonfinite);
// Stored codes of int8: "codes" for -128, which no quantiser makes and kernels do not multiply.
void check_int8_codes(const HostWeight::Part& part, std::int64_t row, std::int64_t k);
// What quantising gave for group `group`: "scale" when f16 cannot hold it.
void check_group_scale(const HostWeight::Part& part, std::int64_t row, std::int64_t group,
                       WeightFormat format, GroupScale made);

// All `count` elements (f32, bf16, f16 or e4m3) are finite.
bool all_finite(const void* data, std::size_t count, DType dtype);

}  // namespace mmengine
