// What both layouts share: which one a directory has, and the checks of their common facts.
#include "model/config.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/check.h"
#include "model/config_reader.h"
#include "model/synthetic.h"

namespace mmengine {

void check_heads(const Fields& fields, const ModelConfig& config, const HeadNames& names) {
  if (config.num_heads % config.num_kv_heads != 0) {
    fields.bad(names.kv_heads,
               str("a divisor of ", fields.path(names.heads), " = ", config.num_heads));
  }
  if (config.head_dim == 0) {
    fields.bad(names.hidden, str("a multiple of ", fields.path(names.heads), " = ",
                                 config.num_heads, " as there is no ", names.head_dim));
  }
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    throw Error(ErrorCode::model_format, fields.file(),
                str(fields.path(names.head_dim), ": expected an even number in [2, ", kMaxHeadDim,
                    "], got ", config.head_dim),
                {.reason = "value", .file = fields.file()});
  }
}

std::int64_t default_head_dim(const ModelConfig& config) {
  return config.hidden_size % config.num_heads == 0 ? config.hidden_size / config.num_heads : 0;
}

std::int64_t context_or_default(std::int64_t length, const Fields& fields,
                                std::vector<std::string>& warnings) {
  constexpr std::int64_t kDefaultContext = 32768;
  if (length != 0) return length;
  warnings.push_back(str(fields.file(), ": ", fields.path("max_position_embeddings"),
                         " is missing; the context is ", kDefaultContext, " tokens"));
  return kDefaultContext;
}

void add_eos(ModelConfig& config, const std::vector<std::int64_t>& ids) {
  for (std::int64_t id : ids) {
    const auto eos = static_cast<std::int32_t>(id);
    if (std::find(config.eos_ids.begin(), config.eos_ids.end(), eos) == config.eos_ids.end()) {
      config.eos_ids.push_back(eos);
    }
  }
}

DType read_dtype(const Fields& fields, const char* key) {
  const std::string name = fields.text(key, "bfloat16");
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  if (name == "float32") return DType::f32;
  fields.unsupported(key, "'bfloat16', 'float16' and 'float32'");
}

CheckpointLayout find_layout(const Directory& directory) {
  bool hf_weights = false, mistral_weights = false, safetensors = false, pickles = false;
  for (const std::string& entry : directory.names()) {
    const std::string_view name = entry;
    const bool index = name.ends_with(".safetensors.index.json");
    const bool tensors = name.ends_with(".safetensors");
    safetensors |= tensors;
    mistral_weights |= (tensors || index) && name.starts_with("consolidated");
    hf_weights |= (tensors || index) && name.starts_with("model");
    for (const char* suffix : {".bin", ".pt", ".pth", ".pkl", ".ckpt"}) {
      pickles |= name.ends_with(suffix);
    }
  }
  if (pickles && !safetensors) {
    throw Error(ErrorCode::unsupported_model, directory.display(),
                "holds no .safetensors file, only .bin, .pt or .pth; pickle formats are never "
                "loaded",
                {.reason = "pickle", .file = directory.display()});
  }
  const bool params = directory.has("params.json");
  const bool config = directory.has("config.json");
  if (!params && !config) {
    throw Error(ErrorCode::model_not_found, directory.display(),
                "no params.json and no config.json, expected a checkpoint in Mistral or Hugging "
                "Face layout; check the path",
                {.reason = "missing", .file = directory.display()});
  }
  const bool only_hf_weights = config && hf_weights && !mistral_weights;
  return params && !only_hf_weights ? CheckpointLayout::mistral : CheckpointLayout::hugging_face;
}

ModelConfig read_config(const std::string& path, std::vector<std::string>& warnings) {
  if (is_synthetic(path)) return read_synthetic(path, warnings);
  const Directory directory(path);
  return find_layout(directory) == CheckpointLayout::mistral ? read_mistral(directory, warnings)
                                                             : read_hf(directory, warnings);
}

}  // namespace mmengine
