// RowReader: the rows of one packed weight, whatever parts, dtype and rotary order it is stored in,
// one at a time and in the weight's own format. Every backend packs from it, so all agree on
// conversions, scales and what they refuse. Parts without data are made up row by row.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "backend/synthetic_rows.h"

namespace mmengine {

struct GroupCodes {                 // where the groups of one row go
  std::uint8_t* codes = nullptr;    // [groups * kGroup] one a byte; int8: signed
  std::uint16_t* scales = nullptr;  // [groups] f16
  std::uint16_t* minima = nullptr;  // [groups] f16, only of int4
};

class RowReader {
 public:
  // Checks parts, shapes and dtypes against the spec; a mismatch is a bug of the caller. Throws
  // Error{model_format, "scale"} for a scale that is not positive.
  RowReader(const HostWeight& host, const WeightSpec& spec);

  // The weight as far as it is known before its data is packed.
  const Weight& weight() const { return weight_; }

  // Of f32, bf16 and fp8. Row `row` of the stacked parts -> k elements of spec.format; returns the
  // row's scale (1 unless fp8), which includes a fixed scale of the input. `buffer` is scratch.
  // Throws Error{model_format, "non_finite"} unless allow_nonfinite; then an fp8 row with a NaN
  // gets the scale NaN, one with infinities the scale infinity.
  float read(std::int64_t row, void* out, std::vector<float>& buffer) const;

  // Of int8 and int4. Row `row` of the stacked parts -> its groups, padding included: as they are
  // where the file has this very format, else quantised (group_codes.h). Throws
  // Error{model_format}: "non_finite" unless allow_nonfinite, then the group gets the scale NaN and
  // codes 0; "scale" for weights too large for an f16 scale and for a stored scale below 0; "codes"
  // for a stored code of -128. A row that quantising turns into zeros is counted (vanished_rows).
  void read_groups(std::int64_t row, const GroupCodes& out, std::vector<float>& buffer) const;

  std::size_t stored_row_bytes(std::int64_t row) const;  // in the file

 private:
  struct StoredRow {
    const HostWeight::Part& part;
    std::int64_t row;                // in its file's order
    const SyntheticRows* synthetic;  // null where the part has data
  };
  std::size_t part_of(std::int64_t row) const;
  StoredRow find(std::int64_t row) const;
  void check_groups(const StoredRow& stored) const;
  // The row's values: read, checked, times `scale`, checked again.
  void read_scaled(const StoredRow& stored, float scale, std::vector<float>& values) const;
  void copy_groups(const StoredRow& stored, const GroupCodes& out) const;

  const HostWeight& host_;
  WeightSpec spec_;
  Weight weight_;
  std::vector<std::int64_t> first_row_;                  // of each part, and the end
  std::vector<std::optional<SyntheticRows>> synthetic_;  // of each part that has no data
};

}  // namespace mmengine
