// Census: what the files of a model hold and what stays loaded of it, from the config alone.
// Tensors come in groups of one shape; sums are by component. Counts and bytes are those of
// model-spec 3.1, 3.2 and 6.1. Nothing is opened, nothing is allocated.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"

namespace mmengine {

enum class Component : std::uint8_t {
  embedding,
  attention,  // q, k, v, o of the decoder
  mlp,        // gate, up, down of the decoder
  norms,      // of the decoder
  head,
  scales,  // of quantised linears: bytes, but no parameters
  vision_tower,
  projector,
  eagle_linear,  // of a draft head
};
constexpr std::size_t kNumComponents = 9;
const char* component_name(Component component);

// What another weight format may be made of; the rest stays as it is stored.
enum class Matter : std::uint8_t { fixed, linear, embedding, head };

struct TensorGroup {
  Component component = Component::norms;
  std::int64_t count = 0;              // tensors of this shape
  std::int64_t rows = 1, columns = 1;  // of each; of int4 two weights are a byte
  DType dtype = DType::bf16;           // as stored: i8 is int8, u8 int4
  Matter matter = Matter::fixed;
  bool divided = false;  // among tensor-parallel devices; else each device holds it whole
};

// What `mm-run convert` wrote into a directory: norms are f32, and with e4m3 every matrix,
// embedding and head included, has one f32 scale per row. i8 and u8 are int8 and int4 with f16
// scales and minima per group. Nothing: the checkpoint is as it was released.
using Conversion = std::optional<DType>;

// Error{model_format} when the manifest of an engine directory does not name its weight dtype.
Conversion read_conversion(const Directory& directory);

std::vector<TensorGroup> decoder_groups(const ModelConfig& config, const Conversion& conversion);

// Of an EAGLE head: eagle_linear and the decoder's layers, no embedding, no head.
std::vector<TensorGroup> draft_groups(const ModelConfig& config);

// What linears, embedding and head are kept as on a GPU:
//   fp8   e4m3 with one f32 scale per row of linears and head; what is fp8 already stays; the
//         embedding is bf16
//   int4  linears in 4 bits with one f16 scale per 128 columns; embedding and head bf16
enum class GpuFormat : std::uint8_t { stored, bf16, fp8, int4 };

struct ComponentSum {
  Component component = Component::norms;
  std::int64_t tensors = 0, parameters = 0, bytes = 0;  // as stored
  std::int64_t resident_bytes = 0;                      // of all devices together, counted once
  std::int64_t whole_bytes = 0;                         // the part of them that each device holds
};

// One entry per component that is there, in the order of Component.
std::vector<ComponentSum> sum_groups(const std::vector<TensorGroup>& groups, GpuFormat format,
                                     bool text_only);

}  // namespace mmengine
