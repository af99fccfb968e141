// Reading the two config layouts. Unknown keys are tolerated; a known key that would change the
// computation and is not understood is an error, never ignored.
#include "model/config.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include "base/check.h"
#include "model/fields.h"

namespace mmengine {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 4 << 20;
constexpr std::int64_t kMaxHidden = 1 << 20, kMaxIntermediate = 1 << 22, kMaxVocab = 1 << 24;
constexpr std::int64_t kMaxLayers = 1024, kMaxHeads = 4096, kMaxHeadDim = 256;
constexpr std::int64_t kMaxContext = 1 << 30, kDefaultContext = 32768;
constexpr double kMinEps = 1e-12, kMaxEps = 0.1;
constexpr const char* kNothingRuns = "nothing from a checkpoint is executed";

void check_heads(const Fields& fields, const ModelConfig& config, const char* heads,
                 const char* kv_heads, const char* head_dim, const char* hidden) {
  if (config.num_heads % config.num_kv_heads != 0) {
    fields.bad(kv_heads, str("a divisor of ", heads, " = ", config.num_heads));
  }
  if (config.head_dim == 0) {
    fields.bad(hidden,
               str("a multiple of ", heads, " = ", config.num_heads, " as there is no ", head_dim));
  }
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    throw Error(
        ErrorCode::model_format, fields.file(),
        str(head_dim, ": expected an even number in [2, ", kMaxHeadDim, "], got ", config.head_dim),
        {.reason = "value", .file = fields.file()});
  }
}

// 0 when the heads do not divide the hidden size: check_heads says so.
std::int64_t default_head_dim(const ModelConfig& config) {
  return config.hidden_size % config.num_heads == 0 ? config.hidden_size / config.num_heads : 0;
}

std::int64_t context_or_default(std::int64_t length, const Fields& fields,
                                std::vector<std::string>& warnings) {
  if (length != 0) return length;
  warnings.push_back(str(fields.file(), ": max_position_embeddings is missing; the context is ",
                         kDefaultContext, " tokens"));
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

// ---- HF --------------------------------------------------------------------------------------

constexpr std::int64_t kMistralKvHeads = 8, kMistralWindow = 4096;  // of the HF class

struct Architecture {
  const char* model_type;
  const char* class_name;
};

constexpr std::array<Architecture, 2> kArchitectures{
    {{"llama", "LlamaForCausalLM"}, {"mistral", "MistralForCausalLM"}}};
constexpr const char* kSupportedArchitectures =
    "LlamaForCausalLM with model_type llama, MistralForCausalLM with model_type mistral";

std::string read_architecture(const Fields& fields) {
  if (!fields.has("model_type") && !fields.has("architectures")) {
    fields.missing("model_type", kSupportedArchitectures);
  }
  const std::string type = fields.text("model_type", "");
  const Json& classes = fields.value("architectures");
  if (!classes.is_null() && !classes.is_array()) fields.bad("architectures", "a list of strings");
  for (const Architecture& known : kArchitectures) {
    const bool same_class = classes.is_null() || classes == Json::array({known.class_name});
    const bool same_type = type.empty() || type == known.model_type;
    if (same_class && same_type) return known.model_type;
  }
  const bool known_type = std::any_of(kArchitectures.begin(), kArchitectures.end(),
                                      [&](const Architecture& a) { return type == a.model_type; });
  fields.unsupported(known_type || type.empty() ? "architectures" : "model_type",
                     kSupportedArchitectures);
}

void refuse_hf_variants(const Fields& fields) {
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    if (fields.flag(bias, false)) fields.unsupported(bias, "false");
  }
  if (fields.text("hidden_act", "silu") != "silu") fields.unsupported("hidden_act", "'silu'");
  for (const char* key : {"quantization_config", "quantization"}) {
    if (!fields.has(key)) continue;
    const Fields quantization = fields.object(key);
    if (quantization.has("quant_method")) quantization.unsupported("quant_method", "none");
    fields.unsupported(key, "none");
  }
}

// The context that a sliding window leaves: within it, windowed and full attention are the same.
std::int64_t cap_by_window(const Fields& fields, const std::string& architecture,
                           std::int64_t context, std::vector<std::string>& warnings) {
  if (architecture != "mistral") return context;
  const bool absent = !fields.present("sliding_window");
  const std::int64_t window =
      absent ? kMistralWindow : fields.integer("sliding_window", 1, kMaxContext, kMaxContext);
  if (window >= context) return context;
  warnings.push_back(str(fields.file(), ": sliding_window ",
                         absent ? "is missing, its default " : "", window, " caps the context"));
  return window;
}

ModelConfig read_hf(const Directory& directory, std::vector<std::string>& warnings) {
  const Json json = read_json_file(directory, "config.json", kMaxConfigBytes);
  const Fields fields(json, directory.display("config.json"));
  ModelConfig config;
  config.architecture = read_architecture(fields);
  refuse_hf_variants(fields);
  config.hidden_size = fields.integer("hidden_size", 1, kMaxHidden);
  config.intermediate_size = fields.integer("intermediate_size", 1, kMaxIntermediate);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  config.num_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.num_heads = fields.integer("num_attention_heads", 1, kMaxHeads);
  // Absent (not null) means what the model class takes then.
  const bool grouped = config.architecture == "mistral" && !fields.present("num_key_value_heads");
  config.num_kv_heads = fields.integer("num_key_value_heads", 1, kMaxHeads,
                                       grouped ? kMistralKvHeads : config.num_heads);
  config.head_dim = fields.integer("head_dim", 2, kMaxHeadDim, default_head_dim(config));
  check_heads(fields, config, "num_attention_heads", "num_key_value_heads", "head_dim",
              "hidden_size");
  config.norm_eps = fields.number("rms_norm_eps", kMinEps, kMaxEps, 1e-6);
  config.rope = read_hf_rope(fields);
  config.tied_embeddings = fields.flag("tie_word_embeddings", false);
  const std::int64_t length = fields.integer("max_position_embeddings", 1, kMaxContext, 0);
  config.max_context = cap_by_window(fields, config.architecture,
                                     context_or_default(length, fields, warnings), warnings);
  add_eos(config, fields.integers("eos_token_id", 0, config.vocab_size - 1));
  if (directory.has("generation_config.json")) {
    const Json generation = read_json_file(directory, "generation_config.json", kMaxConfigBytes);
    const Fields more(generation, directory.display("generation_config.json"));
    add_eos(config, more.integers("eos_token_id", 0, config.vocab_size - 1));
  }
  for (const char* key : {"auto_map", "chat_template"}) {
    if (!fields.has(key)) continue;
    warnings.push_back(str(fields.file(), ": ", key, " is ignored; ", kNothingRuns));
    break;
  }
  return config;
}

// ---- Mistral ---------------------------------------------------------------------------------

void refuse_mistral_variants(const Fields& fields, std::vector<std::string>& warnings) {
  for (const char* key : {"moe", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim",
                          "kv_lora_rank", "v_head_dim"}) {
    if (fields.has(key)) fields.unsupported(key, "null, as in a dense model");
  }
  const std::string type = fields.text("model_type", "transformer");
  if (type != "transformer" && type != "mistral") {
    fields.unsupported("model_type", "'transformer' and 'mistral'");
  }
  if (fields.text("activation", "silu") != "silu") fields.unsupported("activation", "'silu'");
  if (fields.flag("use_biases", false)) fields.unsupported("use_biases", "false");
  if (fields.has("quantization_config")) fields.unsupported("quantization_config", "null");
  if (fields.has("quantization")) {
    const Fields quantization = fields.object("quantization");
    if (quantization.text("qformat_weight", "") != "fp8_e4m3") {
      quantization.unsupported("qformat_weight", "'fp8_e4m3'");
    }
    if (quantization.text("qscheme_act", "TENSOR") != "WEIGHT_ONLY") {
      quantization.unsupported("qscheme_act", "'WEIGHT_ONLY'");
    }
  }
  for (const char* key : {"vision_encoder", "multimodal"}) {
    if (!fields.has(key)) continue;
    warnings.push_back(str(fields.file(), ": ", key, " is ignored; this version takes text only"));
  }
}

// An integer, the same as a string, or a list with one per layer; null means none.
std::optional<std::int64_t> smallest_window(const Fields& fields) {
  const Json& value = fields.value("sliding_window");
  constexpr const char* kExpected = "null, a positive integer or a list of them";
  std::optional<std::int64_t> smallest;
  for (const Json& item : value.is_array() ? value : Json::array({value})) {
    std::int64_t window = 0;
    if (item.is_null()) continue;
    if (item.is_number_integer() && item >= 1 && item <= kMaxContext) {
      window = item.get<std::int64_t>();
    } else if (item.is_string()) {
      const auto& text = item.get_ref<const std::string&>();
      const bool digits = !text.empty() && text.size() <= 9 &&
                          text.find_first_not_of("0123456789") == std::string::npos;
      if (digits) window = std::stoll(text);
    }
    if (window < 1) fields.bad("sliding_window", kExpected);
    smallest = std::min(smallest.value_or(window), window);
  }
  return smallest;
}

std::vector<std::int64_t> read_engine_eos(const Fields& fields, std::int64_t vocab_size) {
  constexpr std::int64_t kMistralEos = 2;
  if (fields.has("mmengine")) {
    const Fields ours = fields.object("mmengine");
    if (ours.integer("format", 1, INT32_MAX) != 1) ours.unsupported("format", "1");
    if (ours.has("eos_token_ids")) return ours.integers("eos_token_ids", 0, vocab_size - 1);
  }
  if (kMistralEos < vocab_size) return {kMistralEos};
  return {};
}

ModelConfig read_mistral(const Directory& directory, std::vector<std::string>& warnings) {
  const Json json = read_json_file(directory, "params.json", kMaxConfigBytes);
  const Fields fields(json, directory.display("params.json"));
  ModelConfig config;
  config.architecture = "mistral";
  refuse_mistral_variants(fields, warnings);
  config.hidden_size = fields.integer("dim", 1, kMaxHidden);
  config.intermediate_size = fields.integer("hidden_dim", 1, kMaxIntermediate);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  config.num_layers = fields.integer("n_layers", 1, kMaxLayers);
  config.num_heads = fields.integer("n_heads", 1, kMaxHeads);
  config.num_kv_heads = fields.integer("n_kv_heads", 1, kMaxHeads, config.num_heads);
  config.head_dim = fields.integer("head_dim", 2, kMaxHeadDim, default_head_dim(config));
  check_heads(fields, config, "n_heads", "n_kv_heads", "head_dim", "dim");
  config.norm_eps = fields.number("norm_eps", kMinEps, kMaxEps, 1e-5);
  config.rope = read_mistral_rope(fields);
  config.tied_embeddings = fields.flag("tied_embeddings", false);
  const std::int64_t length = fields.integer("max_position_embeddings", 1, kMaxContext,
                                             fields.integer("max_seq_len", 1, kMaxContext, 0));
  const std::optional<std::int64_t> window = smallest_window(fields);
  if (length == 0 && window) {
    config.max_context = *window;
  } else {
    config.max_context = context_or_default(length, fields, warnings);
    if (window && *window < config.max_context) {
      warnings.push_back(str(fields.file(), ": sliding_window ", *window, " caps the context"));
      config.max_context = *window;
    }
  }
  add_eos(config, read_engine_eos(fields, config.vocab_size));
  return config;
}

}  // namespace

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
  const Directory directory(path);
  return find_layout(directory) == CheckpointLayout::mistral ? read_mistral(directory, warnings)
                                                             : read_hf(directory, warnings);
}

}  // namespace mmengine
