// What a checkpoint holds, in the words of the public interface.
#include <array>
#include <optional>
#include <utility>

#include "api/load.h"
#include "base/check.h"
#include "mmengine/engine.h"
#include "model/tensor_names.h"

namespace mmengine {
namespace {

constexpr const char* kFirstLinear = "layers.0.q_proj";

const char* quantization(const ModelConfig& config, const Checkpoint& checkpoint) {
  const DType dtype = checkpoint.tensor(kFirstLinear).dtype;
  if (dtype == DType::i8) return "int8, groups of 32";
  if (dtype == DType::u8) return "int4, groups of 32";
  if (dtype != DType::e4m3) return "none";
  switch (config.activations) {
    case ActivationScheme::fixed:
      return "fp8, static activations";
    case ActivationScheme::per_token:
      return "fp8, dynamic activations";
    case ActivationScheme::none:
      break;
  }
  return "fp8, weights only";
}

std::optional<VisionInfo> vision(const ModelConfig& config, const Checkpoint& checkpoint) {
  VisionInfo found;
  for (const std::string& name : checkpoint.names()) {
    if (!is_vision(name)) continue;
    const HostTensor tensor = checkpoint.tensor(name);
    const std::int64_t elements = tensor.shape.count();
    ++found.tensors;
    found.parameters += elements;
    found.bytes += elements * static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  }
  if (found.tensors == 0 || !config.vision) return std::nullopt;
  found.hidden_size = config.vision->hidden_size;
  found.intermediate_size = config.vision->intermediate_size;
  found.num_layers = config.vision->num_layers;
  found.num_heads = config.vision->num_heads;
  found.patch_size = config.vision->patch_size;
  found.image_size = config.vision->image_size;
  found.spatial_merge_size = config.vision->spatial_merge_size;
  return found;
}

// Linears of one input should have one activation scale: calibration saw the same values.
void warn_unequal_scales(const ModelConfig& config, const Checkpoint& checkpoint,
                         std::vector<std::string>& warnings) {
  constexpr std::array<std::pair<const char*, const char*>, 3> kSiblings{
      {{"q_proj", "k_proj"}, {"q_proj", "v_proj"}, {"gate_proj", "up_proj"}}};
  std::int64_t count = 0;
  std::string first;
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    bool differ = false;
    for (const auto& [one, other] : kSiblings) {
      const std::string left = str("layers.", layer, ".", one, kInputScale);
      const std::string right = str("layers.", layer, ".", other, kInputScale);
      if (!checkpoint.has(left) || !checkpoint.has(right)) continue;
      const float a = read_element(checkpoint.tensor(left), 0);
      const float b = read_element(checkpoint.tensor(right), 0);
      if (a == b) continue;
      differ = true;
      if (first.empty()) {
        first = str(checkpoint.source(left).text(), " is ", a, ", ",
                    printable(checkpoint.source(right).tensor), " is ", b);
      }
    }
    if (differ) ++count;
  }
  if (count == 0) return;
  warnings.push_back(str("the activation scales of linears that share an input differ in ", count,
                         " of ", config.num_layers, " layers, first: ", first));
}

}  // namespace

const char* stored_name(DType dtype) {
  if (dtype == DType::i8) return "int8";
  if (dtype == DType::u8) return "int4";
  return dtype_name(dtype);
}

ModelInfo describe(const ModelConfig& config, const Checkpoint& checkpoint,
                   std::vector<std::string> warnings) {
  const bool draft = checkpoint.kind() == CheckpointKind::draft_head;
  ModelInfo info;
  info.kind = draft ? "draft head" : "model";
  info.architecture = config.architecture;
  info.layout = checkpoint.layout();
  info.hidden_size = config.hidden_size;
  info.intermediate_size = config.intermediate_size;
  info.vocab_size = config.vocab_size;
  info.num_layers = config.num_layers;
  info.num_heads = config.num_heads;
  info.num_kv_heads = config.num_kv_heads;
  info.head_dim = config.head_dim;
  info.max_context = config.max_context;
  info.rope_type = rope_type_name(config.rope.type);
  info.rope_theta = config.rope.theta;
  info.rope_factor = config.rope.factor;
  info.rope_original_context = config.rope.original_context;
  info.rope_attention_factor = config.rope.attention_factor;
  info.rope_beta_fast = config.rope.beta_fast;
  info.rope_beta_slow = config.rope.beta_slow;
  info.rope_truncate = config.rope.truncate;
  info.rope_low_freq_factor = config.rope.low_freq_factor;
  info.rope_high_freq_factor = config.rope.high_freq_factor;
  info.rope_scaling_beta = config.rope.scaling_beta;
  info.rope_scaling_context = config.rope.scaling_context;
  info.norm_eps = config.norm_eps;
  info.tied_embeddings = !draft && !checkpoint.has("lm_head");
  info.eos_ids = config.eos_ids;
  info.weight_dtype = stored_name(checkpoint.tensor(kFirstLinear).dtype);
  info.quantization = quantization(config, checkpoint);
  info.weights_bytes = static_cast<std::int64_t>(checkpoint.bytes());
  info.vision = vision(config, checkpoint);
  info.warnings = std::move(warnings);
  for (const std::string& warning : checkpoint.warnings()) info.warnings.push_back(warning);
  if (config.activations == ActivationScheme::fixed) {
    warn_unequal_scales(config, checkpoint, info.warnings);
  }
  return info;
}

ModelInfo inspect(const std::string& directory) {
  std::vector<std::string> warnings;
  const Checkpoint checkpoint = Checkpoint::open(directory, read_config(directory, warnings));
  const ModelConfig& config = checkpoint.config();
  if (checkpoint.kind() == CheckpointKind::model) check_model_shapes(config, checkpoint);
  ModelInfo info = describe(config, checkpoint, std::move(warnings));
  for (const std::string& name : checkpoint.names()) {
    const HostTensor tensor = checkpoint.tensor(name);
    const auto rank = static_cast<std::size_t>(tensor.shape.rank);
    info.tensors.push_back({name,
                            dtype_name(tensor.dtype),
                            {tensor.shape.dims.begin(), tensor.shape.dims.begin() + rank}});
  }
  return info;
}

}  // namespace mmengine
