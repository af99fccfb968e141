#include "model/tensor_rules.h"

#include "base/check.h"
#include "kernels/params.h"
#include "model/tensor_names.h"

namespace mmengine {
namespace {

[[noreturn]] void refuse(const char* reason, const std::string& file, const TensorInfo& tensor,
                         const std::string& message) {
  throw Error(ErrorCode::model_format, file, str("tensor ", printable(tensor.name), ": ", message),
              {.reason = reason, .file = file, .tensor = tensor.name});
}

std::string shape_text(const TensorInfo& tensor) {
  std::string text = "[";
  for (std::size_t i = 0; i < tensor.rank; ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(tensor.dims[i]);
  }
  return text + "]";
}

}  // namespace

void check_dtype(const std::string& file, const TensorInfo& tensor, TensorUse use) {
  const DType dtype = tensor.dtype;
  const bool wide = dtype == DType::f32 || dtype == DType::bf16;
  const bool weight = wide || dtype == DType::f16 || dtype == DType::e4m3;
  const auto check = [&](bool fits, const char* expected) {
    if (fits) return;
    refuse("dtype", file, tensor, str("expected dtype ", expected, ", got ", dtype_name(dtype)));
  };
  switch (use) {
    case TensorUse::weight:
      return check(weight, "f32, bf16, f16 or e4m3");
    case TensorUse::int8_weight:
      return check(weight || dtype == DType::i8, "f32, bf16, f16, e4m3 or i8 (codes of int8)");
    case TensorUse::int4_weight:
      return check(weight || dtype == DType::u8, "f32, bf16, f16, e4m3 or u8 (codes of int4)");
    case TensorUse::scale:
      return check(wide, "f32 or bf16 of a scale");
    case TensorUse::group_scale:
      return check(dtype == DType::f16, "f16 of scales and minima of groups");
  }
}

void check_scale_shape(const std::string& file, const TensorInfo& scale, std::uint64_t rows) {
  const bool one = scale.rank == 0 || (scale.rank == 1 && scale.dims[0] == 1);
  if (one || (rows > 1 && scale.rank == 1 && scale.dims[0] == rows)) return;
  refuse("shape", file, scale,
         str("expected shape [] or [1]", rows > 1 ? str(" or [", rows, "]") : std::string(),
             " of a scale, got ", shape_text(scale)));
}

void check_group_part(const std::string& file, const TensorInfo& part, std::string_view suffix,
                      const TensorInfo& weight) {
  if (!part.name.ends_with(suffix)) {
    refuse("name", file, part,
           str("expected the name to end in ", suffix, ", beside codes of groups"));
  }
  if (weight.rank != 2) {
    refuse("shape", file, weight,
           str("expected a matrix of codes, got shape ", shape_text(weight)));
  }
  constexpr auto kSize = static_cast<std::uint64_t>(kGroup);
  const std::uint64_t rows = weight.dims[0], columns = weight.dims[1];
  const std::uint64_t size = weight.dtype == DType::u8 ? kSize / 2 : kSize;
  const std::uint64_t groups = columns / size + (columns % size != 0 ? 1 : 0);
  if (part.rank == 2 && part.dims[0] == rows && part.dims[1] == groups) return;
  refuse("shape", file, part,
         str("expected shape [", rows, ", ", groups, "] beside ", printable(weight.name), " of ",
             shape_text(weight), ", got ", shape_text(part)));
}

void check_scaled(const std::string& file, const TensorInfo& scale, std::string_view suffix,
                  const TensorInfo& weight) {
  const DType dtype = weight.dtype;
  const bool min = suffix == kWeightMin;
  const bool codes = dtype == DType::u8 || (dtype == DType::i8 && !min);
  if (suffix == kInputScale ? dtype == DType::e4m3 : codes || (dtype == DType::e4m3 && !min))
    return;
  refuse("dtype", file, scale,
         str("expected ", min ? "a u8 tensor beside a minimum" : "an e4m3 tensor beside a scale",
             ", but ", printable(weight.name), " is ", dtype_name(dtype)));
}

}  // namespace mmengine
