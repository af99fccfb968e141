#include "backend/part_checks.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace mmengine {
namespace {

using Part = HostWeight::Part;

void check_row_scale_shape(const Part& part) {
  const HostTensor& s = part.weight_scale;
  const std::int64_t rows = part.weight.shape[0], count = s.shape.count();
  MM_CHECK(part.weight.dtype == DType::e4m3, "pack", part.source.text(),
           ": weight_scale: expected none for ", dtype_name(part.weight.dtype), ", got one");
  MM_CHECK(s.dtype == DType::f32 || s.dtype == DType::bf16, "pack", part.source.text(),
           ": weight_scale: expected f32 or bf16, got ", dtype_name(s.dtype));
  MM_CHECK(count == 1 || count == rows, "pack", part.source.text(),
           ": weight_scale: expected 1 or ", rows, " elements, got ", count);
}

void check_of_groups(const Part& part, const char* name, const HostTensor& tensor,
                     std::int64_t groups) {
  const std::int64_t rows = part.weight.shape[0];
  MM_CHECK(tensor && tensor.dtype == DType::f16 && tensor.shape.rank == 2 &&
               tensor.shape[0] == rows && tensor.shape[1] == groups,
           "pack", part.source.text(), ": ", name, ": expected f16 [", rows, ", ", groups, "]");
}

Error format_error(const TensorSource& source, const char* reason, const std::string& message) {
  return Error(ErrorCode::model_format, source.text(), message,
               {.reason = reason, .file = source.file, .tensor = source.tensor});
}

std::string element(std::int64_t row, std::int64_t column) {
  return str("element [", row, ", ", column, "]: ");
}

[[noreturn]] void not_finite(const TensorSource& source, std::int64_t row, std::int64_t column,
                             float value) {
  throw format_error(source, "non_finite",
                     str(element(row, column), "expected a finite number, got ", value,
                         "; the file is damaged, or pass allow_nonfinite"));
}

// Of the file, or what the packed weight makes of it: that carries a factor of 256.
void check_scale(const TensorSource& source, float value, std::int64_t i, bool zero_allowed) {
  const bool positive = zero_allowed ? value >= 0 : value > 0;
  if (positive && std::isfinite(value * 256)) return;
  throw format_error(
      source, std::isfinite(value) ? "scale" : "non_finite",
      str("element [", i, "]: expected a finite number ", zero_allowed ? ">= 0" : "> 0", ", got ",
          value, "; the file is damaged, download it again"));
}

// Signed and of one width, so that a vector unit compares many at once.
template <class Int>
bool none_above(const void* data, std::size_t count, Int magnitude, Int finite) {
  const auto* bits = static_cast<const Int*>(data);
  Int above = 0;
  for (std::size_t i = 0; i < count; ++i) {
    above = static_cast<Int>(above | ((bits[i] & magnitude) > finite ? -1 : 0));
  }
  return above == 0;
}

}  // namespace

void check_part(const Part& part, const WeightSpec& spec) {
  const HostTensor& w = part.weight;
  const bool packed_codes = w.dtype == DType::u8;
  const std::int64_t columns = stored_columns(w.dtype, spec.k);
  MM_CHECK(
      (w.data != nullptr || w.seed) && w.shape.rank == 2 && w.shape[1] == columns && w.shape[0] > 0,
      "pack", part.source.text(), ": expected shape [rows, ", columns, "], got [", w.shape[0], ", ",
      w.shape[1], "]");
  MM_CHECK(w.dtype == DType::f32 || w.dtype == DType::bf16 || w.dtype == DType::f16 ||
               w.dtype == DType::e4m3 || w.dtype == DType::i8 || packed_codes,
           "pack", part.source.text(), ": expected f32, bf16, f16, e4m3, i8 or u8, got ",
           dtype_name(w.dtype));
  const bool groups = w.dtype == DType::i8 || packed_codes;
  if (groups && w.seed) {
    MM_CHECK(!part.weight_scale && !part.weight_min, "pack", part.source.text(),
             ": groups: expected no scales beside a matrix without data");
  } else if (groups) {
    check_of_groups(part, "weight_scale", part.weight_scale, num_groups(spec.k));
  } else if (part.weight_scale) {
    check_row_scale_shape(part);
  }
  MM_CHECK(packed_codes || !part.weight_min, "pack", part.source.text(),
           ": weight_min: expected none for ", dtype_name(w.dtype), ", got one");
  if (packed_codes && !w.seed)
    check_of_groups(part, "weight_min", part.weight_min, num_groups(spec.k));
  if (part.rows == RowOrder::interleaved) {
    MM_CHECK(spec.role == Role::qkv_proj && spec.head_dim > 0 && spec.head_dim % 2 == 0 &&
                 w.shape[0] % spec.head_dim == 0,
             "pack", part.source.text(),
             ": interleaved rows: expected whole heads of even width, got ", w.shape[0],
             " rows, head_dim ", spec.head_dim);
  }
}

// A scale of one row may be 0, when the row is; one for the whole matrix may not.
void check_row_scales(const Part& part, float input_scale, bool allow_nonfinite) {
  if (part.weight.dtype != DType::e4m3) return;
  const std::int64_t count = part.weight_scale ? part.weight_scale.shape.count() : 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = read_element(part.weight_scale, i);
    if (allow_nonfinite && !std::isfinite(value)) continue;
    check_scale(part.weight_scale_source, value, i, count > 1);
    if (std::isfinite(value * 256 * input_scale)) continue;
    throw format_error(
        part.weight_scale_source, "scale",
        str("element [", i, "]: ", value, " times the activation scale ", input_scale,
            " is no finite number; the file is damaged, download it again"));
  }
}

float checked_input_scale(const HostWeight& host) {
  float largest = 0;
  for (const Part& part : host.parts) {
    MM_CHECK(part.input_scale && part.input_scale.shape.count() == 1, "pack", part.source.text(),
             ": input_scale: expected one element");
    const float value = read_element(part.input_scale, 0);
    check_scale(part.input_scale_source, value, 0, false);
    largest = std::max(largest, value);
  }
  return largest;
}

void check_finite(const Part& part, std::int64_t row, const std::vector<float>& values) {
  if (all_finite(values.data(), values.size(), DType::f32)) return;
  for (std::size_t k = 0; k < values.size(); ++k) {
    if (std::isfinite(values[k])) continue;
    not_finite(part.source, row, static_cast<std::int64_t>(k), values[k]);
  }
}

void check_stored_groups(const Part& part, std::int64_t row, std::int64_t groups,
                         bool allow_nonfinite) {
  for (std::int64_t g = 0; g < groups; ++g) {
    const float scale = read_element(part.weight_scale, row * groups + g);
    const float min = part.weight_min ? read_element(part.weight_min, row * groups + g) : 0.0f;
    if (!std::isfinite(scale) && !allow_nonfinite) {
      not_finite(part.weight_scale_source, row, g, scale);
    }
    if (!std::isfinite(min) && !allow_nonfinite) not_finite(part.weight_min_source, row, g, min);
    if (!(scale < 0) || std::isinf(scale)) continue;
    throw format_error(part.weight_scale_source, "scale",
                       str(element(row, g), "expected a finite number >= 0, got ", scale,
                           "; the file is damaged, download it again"));
  }
}

void check_int8_codes(const Part& part, std::int64_t row, std::int64_t k) {
  const auto* codes = static_cast<const std::int8_t*>(part.weight.data) + row * k;
  bool found = false;
  for (std::int64_t i = 0; i < k; ++i) found |= codes[i] == -128;
  if (!found) return;
  const auto* first = std::find(codes, codes + k, std::int8_t{-128});
  throw format_error(part.source, "codes",
                     str(element(row, first - codes),
                         "expected a code of -127 to 127, got -128; convert the model again"));
}

void check_group_scale(const Part& part, std::int64_t row, std::int64_t group, WeightFormat format,
                       GroupScale made) {
  const bool int4 = format == WeightFormat::int4;
  const float scale = f16_to_f32(made.scale), min = f16_to_f32(made.min);
  if (!std::isinf(scale) && !std::isinf(min)) return;
  throw format_error(
      part.source, "scale",
      str("row ", row, ", elements from ", group * kGroup, ": the weights are too large for ",
          int4 ? "int4, expected a scale and a minimum" : "int8, expected a scale",
          " of at most 65504, got ", scale, int4 ? str(" and ", min) : "",
          "; weight_dtype fp8 or bf16 holds them"));
}

bool all_finite(const void* data, std::size_t count, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return none_above<std::int32_t>(data, count, 0x7fffffff, 0x7f7fffff);
    case DType::bf16:
      return none_above<std::int16_t>(data, count, 0x7fff, 0x7f7f);
    case DType::f16:
      return none_above<std::int16_t>(data, count, 0x7fff, 0x7bff);
    default:
      return none_above<std::int8_t>(data, count, 0x7f, 0x7e);
  }
}

}  // namespace mmengine
