// RowReader: the rows of one packed weight, whatever parts, dtype and rotary order it is stored in,
// one at a time and in the weight's own format. Every backend packs from it, so all agree on
// conversions, scales and what they refuse.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace mmengine {

class RowReader {
 public:
  // Checks parts, shapes and dtypes against the spec; a mismatch is a bug of the caller. Throws
  // Error{model_format, "scale"} for a scale that is not positive.
  RowReader(const HostWeight& host, const WeightSpec& spec);

  // The weight as far as it is known before its data is packed.
  const Weight& weight() const { return weight_; }

  // Row `row` of the stacked parts -> k elements of spec.format; returns the row's scale (1 unless
  // fp8), which includes a fixed scale of the input. `buffer` is scratch. Throws
  // Error{model_format, "non_finite"} unless allow_nonfinite; then an fp8 row with a NaN gets the
  // scale NaN, one with infinities the scale infinity.
  float read(std::int64_t row, void* out, std::vector<float>& buffer) const;
  std::size_t stored_row_bytes(std::int64_t row) const;  // in the file

 private:
  std::size_t part_of(std::int64_t row) const;

  const HostWeight& host_;
  WeightSpec spec_;
  Weight weight_;
  std::vector<std::int64_t> first_row_;  // of each part, and the end
};

}  // namespace mmengine
