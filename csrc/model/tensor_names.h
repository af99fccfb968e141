// The one name table: what tensors are called in HF and in Mistral files, and here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace mmengine {

// Our name of a tensor of a file, a scale with ".weight_scale" at its end; "" when it has none or
// belongs to a layer from num_layers on.
std::string our_name(CheckpointLayout layout, std::string_view source, std::int64_t num_layers);

// The usual name in a file of one of ours, for messages about tensors that are not there.
std::string source_name(CheckpointLayout layout, std::string_view ours);

// Whether a tensor without a name of ours is known to be unused: rotary tables, the vision tower.
bool is_harmless(std::string_view source);

// Ours that a model of so many layers must have; the head may be tied and is not among them.
std::vector<std::string> required_names(std::int64_t num_layers);

}  // namespace mmengine
