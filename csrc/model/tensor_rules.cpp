#include "model/tensor_rules.h"

#include "base/check.h"

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

void check_dtype(const std::string& file, const TensorInfo& tensor, bool is_scale) {
  const bool wide = tensor.dtype == DType::f32 || tensor.dtype == DType::bf16;
  if (wide) return;
  const bool weight = tensor.dtype == DType::f16 || tensor.dtype == DType::e4m3;
  if (weight && !is_scale) return;
  refuse("dtype", file, tensor,
         str("expected dtype ", is_scale ? "f32 or bf16 of a scale" : "f32, bf16, f16 or e4m3",
             ", got ", dtype_name(tensor.dtype)));
}

void check_scale_shape(const std::string& file, const TensorInfo& scale, std::uint64_t rows) {
  const bool one = scale.rank == 0 || (scale.rank == 1 && scale.dims[0] == 1);
  if (one || (rows > 1 && scale.rank == 1 && scale.dims[0] == rows)) return;
  refuse("shape", file, scale,
         str("expected shape [] or [1]", rows > 1 ? str(" or [", rows, "]") : std::string(),
             " of a scale, got ", shape_text(scale)));
}

void check_scaled(const std::string& file, const TensorInfo& scale, const TensorInfo& weight) {
  if (weight.dtype == DType::e4m3) return;
  refuse("dtype", file, scale,
         str("expected an e4m3 tensor beside a scale, but ", printable(weight.name), " is ",
             dtype_name(weight.dtype)));
}

}  // namespace mmengine
