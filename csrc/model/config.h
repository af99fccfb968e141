// ModelConfig: what config.json (HF layout) or params.json (Mistral layout) says, parsed and
// validated once. Both files of one model give equal configs. Later code assumes it and checks
// nothing again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"
#include "kernels/params.h"
#include "model/rope_config.h"

namespace mmengine {

struct ModelConfig {
  std::string architecture;  // "llama" or "mistral"
  std::int64_t hidden_size = 0, intermediate_size = 0, vocab_size = 0;
  std::int64_t num_layers = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0;
  std::int64_t max_context = 0;  // tokens; a sliding window caps it
  double norm_eps = 1e-5;
  bool tied_embeddings = false;  // what the file says; a head tensor in the checkpoint wins
  RopeConfig rope;
  std::vector<std::int32_t> eos_ids;  // ending tokens, in [0, vocab_size); may be empty
};

enum class CheckpointLayout { mistral, hugging_face };

// The one layout that is read. Where files of both are present Mistral's wins, unless only the HF
// weights are there. Error{model_not_found} when there is no config of either, or
// Error{unsupported_model, "pickle"} when the only weights are pickles.
CheckpointLayout find_layout(const Directory& directory);

// Of find_layout's config file: Error{model_format} naming file, field, value and allowed range,
// Error{unsupported_model} naming what is supported. Warnings are appended, one sentence each.
ModelConfig read_config(const std::string& directory, std::vector<std::string>& warnings);

}  // namespace mmengine
