// What a tensor under one of our names may be, as far as its header tells.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "model/safetensors.h"

namespace mmengine {

// weight: f32, bf16, f16 or e4m3, or, as int8_weight, i8, as int4_weight, u8; scale: f32 or bf16;
// group_scale, which a minimum is, too: f16. Error{model_format, "dtype"}.
enum class TensorUse : std::uint8_t { weight, int8_weight, int4_weight, scale, group_scale };
void check_dtype(const std::string& file, const TensorInfo& tensor, TensorUse use);

// One element, of rank 0 or 1; `rows`: or one for each of so many rows, as a weight scale may be.
// Error{model_format, "shape"}.
void check_scale_shape(const std::string& file, const TensorInfo& scale, std::uint64_t rows);

// Scales and minima of groups: they have the name that they have in the engine, `suffix`, and
// [rows, groups] beside codes of rank 2, as their dtype tells. Error{model_format, "name" |
// "shape"}.
void check_group_part(const std::string& file, const TensorInfo& part, std::string_view suffix,
                      const TensorInfo& weight);

// What a scale, told by the end of its name, stands beside: that of a weight e4m3, i8 or u8, that
// of an input e4m3, a minimum u8. Error{model_format, "dtype"} names both tensors.
void check_scaled(const std::string& file, const TensorInfo& scale, std::string_view suffix,
                  const TensorInfo& weight);

}  // namespace mmengine
