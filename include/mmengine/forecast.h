// What a model will need before any of it is there: bytes by component and, for the CPU, the very
// sums that Engine::load makes. Reads the config of a directory and nothing else, so a directory
// with config.json or params.json alone will do; synthetic names (engine.h) are taken, too.
// Standard library only, C++17.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mmengine/error.h"
#include "mmengine/export.h"
#include "mmengine/types.h"

namespace mmengine {

struct Census {
  struct Component {
    std::string name;  // "embedding", "attention", "mlp", "norms", "head", "scales", ...
    std::int64_t tensors = 0, parameters = 0, bytes = 0;  // as stored; a scale is no parameter
    std::int64_t resident_bytes = 0;                      // on a GPU under the format asked for
    std::int64_t whole_bytes = 0;  // the part of them that every tensor-parallel device holds
  };
  std::vector<Component> components;  // those that the model has
  std::int64_t hidden_size = 0, intermediate_size = 0, vocab_size = 0;
  std::int64_t num_layers = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0;
  std::int64_t max_context = 0;
  // As in ModelInfo.
  std::string rope_type;
  double rope_theta = 0, rope_factor = 1, rope_original_context = 0, rope_attention_factor = 1;
  // Of the vision tower; 0 without one. vision_patches: of the largest image.
  std::int64_t vision_hidden_size = 0, vision_intermediate_size = 0, vision_num_heads = 0;
  std::int64_t vision_patches = 0;
  std::string
      weight_dtype;  // of the linears as stored: "f32", "bf16", "f16", "e4m3", "int8", "int4"
  std::vector<std::string> warnings;
};

// weight_dtype: "auto" (as stored), "bf16", "fp8" or "int4"; draft: the directory is an EAGLE head.
// Error{usage | model_not_found | model_format | unsupported_model}.
MM_EXPORT Census census(const std::string& directory, const std::string& weight_dtype = "auto",
                        bool text_only = false, bool draft = false);

// Memory of an engine on the CPU, by the rules of Engine::load. Where that would refuse, `fits` is
// false and the sums are those of the longest context that the rules allow.
struct CpuForecast {
  bool fits = false;
  std::int64_t needed_bytes = 0;     // for one sequence of max_context tokens, or of the model's
  std::int64_t available_bytes = 0;  // options.memory_bytes, else what the machine has free
  std::int64_t resident_bytes = 0;   // weights as packed; a vision tower is not loaded
  std::int64_t kv_bytes = 0;         // the pool
  std::int64_t workspace_bytes = 0;  // everything else
  std::int64_t kv_blocks = 0, kv_block_tokens = 0, max_context = 0;
  KvDtype kv_dtype = KvDtype::bf16;  // resolved
};

// Takes weight_dtype, kv_dtype, max_context, max_batch, prefill_chunk, kv_blocks, memory_bytes and
// threads of the options.
MM_EXPORT CpuForecast forecast_cpu(const std::string& directory, const EngineOptions& options);

}  // namespace mmengine
