// The one name table: what tensors are called in HF and in Mistral files, and here.
//
// Ours: "embed_tokens", "lm_head", "norm", "layers.N.{input_norm,post_norm}",
// "layers.N.{q,k,v,o,gate,up,down}_proj"; of the vision tower "vision.{patch_conv,ln_pre}" and
// "vision.layers.N." with the same names; of its projector
// "projector.{norm,merging_layer,linear_1,linear_2}"; of a draft head "eagle_linear".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace mmengine {

// Behind the name of a tensor: scales of FP8 and, of its input, both of which multiply when a code
// becomes a value (model-spec 2.3). Matrices of the text model in groups (params.h) are codes, int8
// as I8 [n, k], int4 as U8 [n, 16 groups] (HostWeight::Part), with F16 [n, groups] scales and, of
// int4, minima.
constexpr std::string_view kWeightScale = ".weight_scale", kInputScale = ".input_scale";
constexpr std::string_view kWeightMin = ".weight_min";
constexpr const char* kDraftLinear = "eagle_linear";

// Our name of a tensor of a file; "" when it has none, belongs to a layer that the config does not
// have, or to a vision tower where the config has none.
std::string our_name(CheckpointLayout layout, std::string_view source, const ModelConfig& config);

// The usual name in a file of one of ours, for messages about tensors that are not there.
std::string source_name(CheckpointLayout layout, std::string_view ours);

// What a tensor without a name of ours is.
enum class Unnamed {
  unused,    // known and not needed: rotary tables, the vision tower of a text config
  kv_scale,  // of a KV cache in FP8, which is not what the engine keeps
  unknown,
};
Unnamed purpose_of_unnamed(std::string_view source);

// Ours that a model of so many layers must have; the head may be tied and is not among them. A
// draft head has no embedding table and no head but its first linear.
std::vector<std::string> required_names(std::int64_t num_layers, bool draft_head);

// Ours of a vision tower and its projector.
std::vector<std::string> vision_names(const VisionConfig& config);
bool is_vision(std::string_view ours);

// Ours of a matrix that may be stored in groups: linears of the decoder, embedding and head.
bool may_have_groups(std::string_view ours);

}  // namespace mmengine
