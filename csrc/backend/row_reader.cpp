#include "backend/row_reader.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/group_codes.h"
#include "backend/part_checks.h"
#include "backend/row_values.h"
#include "base/check.h"

namespace mmengine {
namespace {

using Part = HostWeight::Part;

bool as_stored(DType dtype, WeightFormat format) {
  switch (format) {
    case WeightFormat::f32:
      return dtype == DType::f32;
    case WeightFormat::bf16:
      return dtype == DType::bf16;
    case WeightFormat::fp8:
      return dtype == DType::e4m3;
    case WeightFormat::int8:
      return dtype == DType::i8;
    case WeightFormat::int4:
      return dtype == DType::u8;
  }
  return false;
}

// Whether no code counts: no group has a scale or a minimum.
bool is_zero(const GroupCodes& row, std::int64_t groups) {
  const auto zero = [&](const std::uint16_t* halves) {
    return std::all_of(halves, halves + groups, [](std::uint16_t h) { return (h & 0x7fff) == 0; });
  };
  return zero(row.scales) && (row.minima == nullptr || zero(row.minima));
}

bool all_zero(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return v == 0; });
}

// f32_to_e4m3 of what is not NaN, without a branch, for a compiler with vectors of any width.
std::uint8_t e4m3_code(float value) {
  constexpr auto kMost = std::bit_cast<std::int32_t>(kMaxE4m3);
  constexpr auto kLeastNormal = std::bit_cast<std::int32_t>(0x1p-6f);
  const auto bits = std::bit_cast<std::int32_t>(value);
  const std::int32_t m = std::min(bits & 0x7fffffff, kMost);
  const std::int32_t normal = ((m + 0x7ffff + ((m >> 20) & 1)) >> 20) - ((127 - 7) << 3);
  // Beside 2^14 the last bit counts 2^-9, the step of subnormal codes.
  const std::int32_t subnormal = std::bit_cast<std::int32_t>(std::bit_cast<float>(m) + 0x1p14f) -
                                 std::bit_cast<std::int32_t>(0x1p14f);
  const std::int32_t below = (m - kLeastNormal) >> 31;  // all bits or none
  const std::int32_t code = (subnormal & below) | (normal & ~below);
  return static_cast<std::uint8_t>(((bits >> 24) & 0x80) | code);
}

// Codes <- the row times 1 / scale; returns the scale. A row that is not finite keeps no detail.
float quantise(const std::vector<float>& values, std::uint8_t* codes) {
  std::int32_t most = 0;  // bits of magnitudes are ordered as these are, NaN above all
  for (float v : values) most = std::max(most, std::bit_cast<std::int32_t>(v) & 0x7fffffff);
  const auto largest = std::bit_cast<float>(most);
  if (std::isnan(largest)) {
    std::fill_n(codes, values.size(), std::uint8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (std::isinf(largest)) {
    std::transform(values.begin(), values.end(), codes,
                   [](float v) { return std::isinf(v) ? f32_to_e4m3(v) : std::uint8_t{0}; });
    return largest;
  }
  const float scale = e4m3_scale(largest);
  const float* w = values.data();  // taken once: writing a byte might change anything
  const std::size_t count = values.size();
  for (std::size_t i = 0; i < count; ++i) codes[i] = e4m3_code(w[i] / scale);
  return scale;
}

// Of e4m3 weights that have one; groups have their own.
float row_scale(const Part& part, std::int64_t row) {
  if (part.weight.dtype != DType::e4m3 || !part.weight_scale) return 1.0f;
  return read_element(part.weight_scale, part.weight_scale.shape.count() == 1 ? 0 : row);
}

bool not_finite(std::uint16_t half) { return (half & 0x7c00u) == 0x7c00u; }

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
    auto& synthetic = synthetic_.emplace_back();
    if (part.weight.seed) synthetic.emplace(*part.weight.seed, part.weight.dtype, spec.k);
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
  if (host.quant == InputQuant::fixed) weight_.input_scale = checked_input_scale(host);
  for (const Part& part : host.parts) {
    check_row_scales(part, weight_.input_scale, host.allow_nonfinite);
  }
}

std::size_t RowReader::part_of(std::int64_t row) const {
  const auto after = std::upper_bound(first_row_.begin(), first_row_.end(), row);
  return static_cast<std::size_t>(after - first_row_.begin()) - 1;
}

std::size_t RowReader::stored_row_bytes(std::int64_t row) const {
  const HostTensor& weight = host_.parts[part_of(row)].weight;
  return static_cast<std::size_t>(weight.shape[1]) * dtype_bytes(weight.dtype);
}

RowReader::StoredRow RowReader::find(std::int64_t row) const {
  const std::size_t index = part_of(row);
  const Part& part = host_.parts[index];
  row -= first_row_[index];
  if (part.rows == RowOrder::interleaved) {
    const std::int64_t half = spec_.head_dim / 2, j = row % spec_.head_dim;
    row += (j < half ? 2 * j : 2 * (j - half) + 1) - j;
  }
  return {part, row, synthetic_[index] ? &*synthetic_[index] : nullptr};
}

void RowReader::check_groups(const StoredRow& stored) const {
  const auto& [part, row, synthetic] = stored;
  const DType dtype = part.weight.dtype;
  if (synthetic != nullptr) return;
  if (dtype != DType::i8 && dtype != DType::u8) return;
  check_stored_groups(part, row, num_groups(spec_.k), host_.allow_nonfinite);
  if (dtype == DType::i8) check_int8_codes(part, row, spec_.k);
}

void RowReader::read_scaled(const StoredRow& stored, float scale,
                            std::vector<float>& values) const {
  const auto& [part, row, synthetic] = stored;
  check_groups(stored);
  values.resize(static_cast<std::size_t>(spec_.k));
  if (synthetic != nullptr) {
    synthetic->read_values(row, values.data());
  } else {
    read_values(part, row, spec_.k, values.data());
  }
  if (!host_.allow_nonfinite) check_finite(part, row, values);
  if (scale == 1.0f) return;
  for (float& v : values) v *= scale;
  if (!host_.allow_nonfinite) check_finite(part, row, values);
}

float RowReader::read(std::int64_t row, void* out, std::vector<float>& buffer) const {
  const StoredRow stored = find(row);
  const HostTensor& weight = stored.part.weight;
  float scale = row_scale(stored.part, stored.row) * weight_.input_scale;
  const auto width = static_cast<std::size_t>(spec_.k);
  if (as_stored(weight.dtype, spec_.format)) {
    if (stored.synthetic != nullptr) {
      stored.synthetic->read(stored.row, out);
      return scale;
    }
    const std::size_t bytes = width * dtype_bytes(weight.dtype);
    const std::byte* data =
        static_cast<const std::byte*>(weight.data) + static_cast<std::size_t>(stored.row) * bytes;
    std::memcpy(out, data, bytes);
    if (all_finite(out, width, weight.dtype)) return scale;  // else name the element
  }
  if (spec_.format == WeightFormat::fp8) {
    auto* codes = static_cast<std::uint8_t*>(out);
    read_scaled(stored, 1.0f, buffer);
    if (weight.dtype != DType::e4m3) return quantise(buffer, codes);
    // Copied above, but for NaN codes.
    for (std::size_t k = 0; k < width; ++k) {
      if (!std::isnan(buffer[k])) continue;
      codes[k] = 0;
      scale = std::numeric_limits<float>::quiet_NaN();
    }
    return scale;
  }
  read_scaled(stored, scale, buffer);
  if (spec_.format == WeightFormat::f32) {
    std::memcpy(out, buffer.data(), width * sizeof(float));
    return 1.0f;
  }
  auto* bits = static_cast<std::uint16_t*>(out);
  for (float& v : buffer) {
    *bits = f32_to_bf16(v);
    v = bf16_to_f32(*bits++);
  }
  if (!host_.allow_nonfinite) check_finite(stored.part, stored.row, buffer);
  return 1.0f;
}

void RowReader::copy_groups(const StoredRow& stored, const GroupCodes& out) const {
  const auto& [part, row, synthetic] = stored;
  MM_CHECK(synthetic == nullptr, "pack", part.source.text(), ": no groups without data");
  const std::int64_t groups = num_groups(spec_.k);
  check_groups(stored);
  read_codes(part, row, spec_.k, out.codes);
  const auto bytes = static_cast<std::size_t>(groups) * sizeof(std::uint16_t);
  const auto copy = [&](const HostTensor& from, std::uint16_t* to) {
    std::memcpy(to,
                static_cast<const std::byte*>(from.data) + static_cast<std::size_t>(row) * bytes,
                bytes);
  };
  copy(part.weight_scale, out.scales);
  if (out.minima != nullptr) copy(part.weight_min, out.minima);
  for (std::int64_t g = 0; g < groups; ++g) {
    const bool minimum = out.minima != nullptr && not_finite(out.minima[g]);
    if (!not_finite(out.scales[g]) && !minimum) continue;
    std::fill_n(out.codes + g * kGroup, kGroup, std::uint8_t{0});
    out.scales[g] = kHalfNaN;
    if (out.minima != nullptr) out.minima[g] = 0;
  }
}

void RowReader::read_groups(std::int64_t row, const GroupCodes& out,
                            std::vector<float>& buffer) const {
  const StoredRow stored = find(row);
  if (stored.synthetic == nullptr && as_stored(stored.part.weight.dtype, spec_.format)) {
    return copy_groups(stored, out);
  }
  read_scaled(stored, row_scale(stored.part, stored.row), buffer);
  const bool int4 = spec_.format == WeightFormat::int4;
  for (std::int64_t g = 0; g < num_groups(spec_.k); ++g) {
    const std::int64_t first = g * kGroup, count = std::min(kGroup, spec_.k - first);
    const GroupScale made =
        (int4 ? quantise_int4 : quantise_int8)(buffer.data() + first, count, out.codes + first);
    check_group_scale(stored.part, stored.row, g, spec_.format, made);
    out.scales[g] = made.scale;
    if (int4) out.minima[g] = made.min;
  }
  if (host_.vanished_rows != nullptr && is_zero(out, num_groups(spec_.k)) && !all_zero(buffer)) {
    ++*host_.vanished_rows;
  }
}

}  // namespace mmengine
