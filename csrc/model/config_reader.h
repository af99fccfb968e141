// What the readers of the two config layouts share: limits, checks, and the blocks of a config that
// have a reader of their own. Private to the reading of configs; others include config.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/fields.h"

namespace mmengine {

constexpr std::uint64_t kMaxConfigBytes = 4 << 20;
constexpr std::int64_t kMaxHidden = 1 << 20, kMaxIntermediate = 1 << 22, kMaxVocab = 1 << 24;
constexpr std::int64_t kMaxLayers = 1024, kMaxHeads = 4096, kMaxHeadDim = 256;
constexpr std::int64_t kMaxContext = 1 << 30;
constexpr double kMinEps = 1e-12, kMaxEps = 0.1;
constexpr std::int64_t kMistralEos = 2;  // of every vocabulary of Mistral's

// The names of fields in one layout, for messages.
struct HeadNames {
  const char *heads, *kv_heads, *head_dim, *hidden;
};
void check_heads(const Fields& fields, const ModelConfig& config, const HeadNames& names);

// 0 when the heads do not divide the hidden size: check_heads says so.
std::int64_t default_head_dim(const ModelConfig& config);

// `length`, or a default with a warning where it is 0: not given.
std::int64_t context_or_default(std::int64_t length, const Fields& fields,
                                std::vector<std::string>& warnings);

void add_eos(ModelConfig& config, const std::vector<std::int64_t>& ids);

// `key` is "bfloat16", "float16" or "float32"; bf16 when it is absent.
DType read_dtype(const Fields& fields, const char* key);

// Set fp8_linears, activations and group_format. The HF block is transformers'
// FineGrainedFP8Config; Mistral's has the key quantization, or quantization_config with an HF
// block.
void read_hf_quantization(const Fields& fields, ModelConfig& config);
void read_mistral_quantization(const Fields& fields, ModelConfig& config);

// The tower and its projector, of a mistral3 config and of a params.json with a vision_encoder.
// Warn that images are not read.
VisionConfig read_hf_vision(const Fields& top, std::int64_t vocab_size,
                            std::vector<std::string>& warnings);
std::optional<VisionConfig> read_mistral_vision(const Fields& fields, std::int64_t vocab_size,
                                                std::vector<std::string>& warnings);

ModelConfig read_hf(const Directory& directory, std::vector<std::string>& warnings);
ModelConfig read_mistral(const Directory& directory, std::vector<std::string>& warnings);
// The object of a params.json; `file` is only named in messages.
ModelConfig read_params(const Json& params, const std::string& file,
                        std::vector<std::string>& warnings);

}  // namespace mmengine
