#include "backend/row_reader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace mmengine {
namespace {

using Part = HostWeight::Part;

void check_part(const Part& part, const WeightSpec& spec) {
  const HostTensor& w = part.weight;
  MM_CHECK(w.data != nullptr && w.shape.rank == 2 && w.shape[1] == spec.k && w.shape[0] > 0, "pack",
           part.source.text(), ": expected shape [rows, ", spec.k, "], got [", w.shape[0], ", ",
           w.shape[1], "]");
  MM_CHECK(w.dtype == DType::f32 || w.dtype == DType::bf16 || w.dtype == DType::f16 ||
               w.dtype == DType::e4m3,
           "pack", part.source.text(), ": expected f32, bf16, f16 or e4m3, got ",
           dtype_name(w.dtype));
  if (part.weight_scale) {
    const HostTensor& s = part.weight_scale;
    const std::int64_t count = s.shape.count();
    MM_CHECK(w.dtype == DType::e4m3, "pack", part.source.text(),
             ": weight_scale: expected none for ", dtype_name(w.dtype), ", got one");
    MM_CHECK(s.dtype == DType::f32 || s.dtype == DType::bf16, "pack", part.source.text(),
             ": weight_scale: expected f32 or bf16, got ", dtype_name(s.dtype));
    MM_CHECK(count == 1 || count == w.shape[0], "pack", part.source.text(),
             ": weight_scale: expected 1 or ", w.shape[0], " elements, got ", count);
  }
  if (part.rows == RowOrder::interleaved) {
    MM_CHECK(spec.role == Role::qkv_proj && spec.head_dim > 0 && spec.head_dim % 2 == 0 &&
                 w.shape[0] % spec.head_dim == 0,
             "pack", part.source.text(),
             ": interleaved rows: expected whole heads of even width, got ", w.shape[0],
             " rows, head_dim ", spec.head_dim);
  }
}

[[noreturn]] void not_finite(const Part& part, const std::string& element, float value) {
  throw Error(ErrorCode::model_format, part.source.text(),
              str(element, ": expected a finite number, got ", value,
                  "; the file is damaged, or pass allow_nonfinite"),
              {.reason = "non_finite", .file = part.source.file, .tensor = part.source.tensor});
}

void check_finite(const Part& part, std::int64_t row, const std::vector<float>& values) {
  for (std::size_t k = 0; k < values.size(); ++k) {
    if (!std::isfinite(values[k])) not_finite(part, str("element [", row, ", ", k, "]"), values[k]);
  }
}

// Of the file, or what the packed weight makes of it: that carries a factor of 256.
void check_scale(const TensorSource& source, float value, std::int64_t i, bool zero_allowed) {
  const bool positive = zero_allowed ? value >= 0 : value > 0;
  if (positive && std::isfinite(value * 256)) return;
  throw Error(ErrorCode::model_format, source.text(),
              str("element [", i, "]: expected a finite number ", zero_allowed ? ">= 0" : "> 0",
                  ", got ", value, "; the file is damaged, download it again"),
              {.reason = std::isfinite(value) ? "scale" : "non_finite",
               .file = source.file,
               .tensor = source.tensor});
}

// A scale of one row may be 0, when the row is; one for the whole matrix may not.
void check_weight_scales(const Part& part, float input_scale, bool allow_nonfinite) {
  const std::int64_t count = part.weight_scale ? part.weight_scale.shape.count() : 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = read_element(part.weight_scale, i);
    if (allow_nonfinite && !std::isfinite(value)) continue;
    check_scale(part.weight_scale_source, value, i, count > 1);
    if (std::isfinite(value * 256 * input_scale)) continue;
    throw Error(ErrorCode::model_format, part.weight_scale_source.text(),
                str("element [", i, "]: ", value, " times the activation scale ", input_scale,
                    " is no finite number; the file is damaged, download it again"),
                {.reason = "scale",
                 .file = part.weight_scale_source.file,
                 .tensor = part.weight_scale_source.tensor});
  }
}

float largest_input_scale(const HostWeight& host) {
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

bool as_stored(DType dtype, WeightFormat format) {
  switch (format) {
    case WeightFormat::f32:
      return dtype == DType::f32;
    case WeightFormat::bf16:
      return dtype == DType::bf16;
    case WeightFormat::fp8:
      return dtype == DType::e4m3;
  }
  return false;
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

bool all_finite(const void* data, std::size_t count, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return none_above<std::int32_t>(data, count, 0x7fffffff, 0x7f7fffff);
    case DType::bf16:
      return none_above<std::int16_t>(data, count, 0x7fff, 0x7f7f);
    default:
      return none_above<std::int8_t>(data, count, 0x7f, 0x7e);
  }
}

// Codes <- the row times 1 / scale; returns the scale. A row that is not finite keeps no detail.
float quantise(const std::vector<float>& values, std::uint8_t* codes) {
  float largest = 0;
  bool nan = false;
  for (float v : values) {
    nan = nan || std::isnan(v);
    largest = std::max(largest, std::fabs(v));
  }
  if (nan) {
    std::fill_n(codes, values.size(), std::uint8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (std::isinf(largest)) {
    std::transform(values.begin(), values.end(), codes,
                   [](float v) { return std::isinf(v) ? f32_to_e4m3(v) : std::uint8_t{0}; });
    return largest;
  }
  const float scale = e4m3_scale(largest);
  std::transform(values.begin(), values.end(), codes,
                 [scale](float v) { return f32_to_e4m3(v / scale); });
  return scale;
}

}  // namespace

RowReader::RowReader(const HostWeight& host, const WeightSpec& spec)
    : host_(host), spec_(spec), weight_{.spec = spec, .quant = host.quant} {
  const std::size_t expected = spec.role == Role::qkv_proj       ? 3
                               : spec.role == Role::gate_up_proj ? 2
                                                                 : 1;
  MM_CHECK(host.parts.size() == expected, "pack", "parts: expected ", expected, ", got ",
           host.parts.size());
  first_row_.push_back(0);
  for (const Part& part : host.parts) {
    check_part(part, spec);
    MM_CHECK(host.quant == InputQuant::none || part.weight.dtype == DType::e4m3, "pack",
             part.source.text(), ": expected e4m3 beside a quantised input, got ",
             dtype_name(part.weight.dtype));
    first_row_.push_back(first_row_.back() + part.weight.shape[0]);
  }
  MM_CHECK(first_row_.back() == spec.n, "pack", host.parts[0].source.text(),
           ": rows of all parts: expected ", spec.n, ", got ", first_row_.back());
  MM_CHECK(spec.role != Role::gate_up_proj || 2 * first_row_[1] == spec.n, "pack",
           host.parts[0].source.text(), ": expected as many gate rows as up rows, got ",
           first_row_[1], " of ", spec.n);
  MM_CHECK(host.quant == InputQuant::none || spec.format == WeightFormat::fp8, "pack",
           host.parts[0].source.text(), ": expected format fp8 for an input that is quantised");
  if (host.quant == InputQuant::fixed) weight_.input_scale = largest_input_scale(host);
  for (const Part& part : host.parts) {
    check_weight_scales(part, weight_.input_scale, host.allow_nonfinite);
  }
}

std::size_t RowReader::part_of(std::int64_t row) const {
  const auto after = std::upper_bound(first_row_.begin(), first_row_.end(), row);
  return static_cast<std::size_t>(after - first_row_.begin()) - 1;
}

std::size_t RowReader::stored_row_bytes(std::int64_t row) const {
  const DType dtype = host_.parts[part_of(row)].weight.dtype;
  return static_cast<std::size_t>(spec_.k) * dtype_bytes(dtype);
}

float RowReader::read(std::int64_t row, void* out, std::vector<float>& buffer) const {
  const std::size_t index = part_of(row);
  const Part& part = host_.parts[index];
  row -= first_row_[index];
  if (part.rows == RowOrder::interleaved) {
    const std::int64_t half = spec_.head_dim / 2, j = row % spec_.head_dim;
    row += (j < half ? 2 * j : 2 * (j - half) + 1) - j;
  }

  const HostTensor& weight = part.weight;
  float scale = 1.0f;
  if (part.weight_scale) {
    scale = read_element(part.weight_scale, part.weight_scale.shape.count() == 1 ? 0 : row);
  }
  scale *= weight_.input_scale;
  const auto width = static_cast<std::size_t>(spec_.k);
  if (as_stored(weight.dtype, spec_.format)) {
    const std::size_t bytes = width * dtype_bytes(weight.dtype);
    const std::byte* stored =
        static_cast<const std::byte*>(weight.data) + static_cast<std::size_t>(row) * bytes;
    std::memcpy(out, stored, bytes);
    if (all_finite(out, width, weight.dtype)) return scale;  // else name the element
  }
  buffer.resize(width);
  for (std::size_t k = 0; k < width; ++k) {
    buffer[k] = read_element(weight, row * spec_.k + static_cast<std::int64_t>(k));
  }
  if (!host_.allow_nonfinite) check_finite(part, row, buffer);

  if (spec_.format == WeightFormat::fp8) {
    auto* codes = static_cast<std::uint8_t*>(out);
    if (weight.dtype != DType::e4m3) return quantise(buffer, codes);
    std::memcpy(codes, static_cast<const std::uint8_t*>(weight.data) + row * spec_.k, width);
    for (std::size_t k = 0; k < width; ++k) {
      if (!std::isnan(buffer[k])) continue;
      codes[k] = 0;
      scale = std::numeric_limits<float>::quiet_NaN();
    }
    return scale;
  }
  for (float& v : buffer) v *= scale;
  if (spec_.format == WeightFormat::f32) {
    std::memcpy(out, buffer.data(), width * sizeof(float));
  } else {
    auto* bits = static_cast<std::uint16_t*>(out);
    for (float& v : buffer) {
      *bits = f32_to_bf16(v);
      v = bf16_to_f32(*bits++);
    }
  }
  if (!host_.allow_nonfinite) check_finite(part, row, buffer);
  return 1.0f;
}

}  // namespace mmengine
