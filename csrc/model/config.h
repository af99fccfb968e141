// ModelConfig: what config.json (HF layout) or params.json (Mistral layout) says, parsed and
// validated once. Both files of one model give equal configs. Later code assumes it and checks
// nothing again.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "kernels/params.h"
#include "model/rope_config.h"

namespace mmengine {

// How the fp8 linears of the decoder take their inputs (model-spec 2.3).
enum class ActivationScheme : std::uint8_t {
  none,       // as they are: the weights alone are quantised, or nothing is
  fixed,      // "static": one scale per linear, in the file
  per_token,  // "dynamic": one scale per row of the input, computed
};

// The Pixtral tower and its projector (model-spec 5).
struct VisionConfig {
  std::int64_t hidden_size = 0, intermediate_size = 0, num_layers = 0, num_heads = 0, head_dim = 0;
  std::int64_t patch_size = 0, image_size = 0, num_channels = 0, spatial_merge_size = 0;
  double rope_theta = 1e4;
  std::int32_t image_token_id = 0;
  bool operator==(const VisionConfig&) const = default;
};

struct ModelConfig {
  std::string architecture;  // "llama" or "mistral"
  std::int64_t hidden_size = 0, intermediate_size = 0, vocab_size = 0;
  std::int64_t num_layers = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0;
  std::int64_t max_context = 0;  // tokens; a sliding window caps it
  double norm_eps = 1e-5;
  bool tied_embeddings = false;  // what the file says; a head tensor in the checkpoint wins
  DType dtype = DType::bf16;     // of the tensors that are not fp8, as far as the file says
  bool fp8_linears = false;      // the linears of the decoder's layers are stored as e4m3
  ActivationScheme activations = ActivationScheme::none;
  // The matrices are stored as int8, or as int4 with embedding and head as int8 (tensor_names.h).
  std::optional<WeightFormat> group_format;
  RopeConfig rope;
  std::optional<VisionConfig> vision;
  std::vector<std::int32_t> eos_ids;  // ending tokens, in [0, vocab_size); may be empty
  bool operator==(const ModelConfig&) const = default;
};

enum class CheckpointLayout { mistral, hugging_face };

// The one layout that is read. Where files of both are present Mistral's wins, unless only the HF
// weights are there. Error{model_not_found} when there is no config of either, or
// Error{unsupported_model, "pickle"} when the only weights are pickles.
CheckpointLayout find_layout(const Directory& directory);

// Of find_layout's config file: Error{model_format} naming file, field, value and allowed range,
// Error{unsupported_model} naming what is supported. Warnings are appended, one sentence each.
// A name of model/synthetic.h is taken, too.
ModelConfig read_config(const std::string& directory, std::vector<std::string>& warnings);

}  // namespace mmengine
