// What a tensor under one of our names may be, as far as its header tells.
#pragma once

#include <string>

#include "model/safetensors.h"

namespace mmengine {

// Weights: f32, bf16, f16 or e4m3; the scales of one: f32 or bf16. Error{model_format, "dtype"}.
void check_dtype(const std::string& file, const TensorInfo& tensor, bool is_scale);

// One element, of rank 0 or 1; `rows`: or one for each of so many rows, as a weight scale may be.
// Error{model_format, "shape"}.
void check_scale_shape(const std::string& file, const TensorInfo& scale, std::uint64_t rows);

// A scale stands beside an e4m3 tensor alone. Error{model_format, "dtype"} names both.
void check_scaled(const std::string& file, const TensorInfo& scale, const TensorInfo& weight);

}  // namespace mmengine
