// config.json. Unknown keys are tolerated; a known key that would change the computation and is not
// understood is an error, never ignored. What is absent has the value that transformers' class of
// the model gives it.
#include <algorithm>
#include <array>
#include <string_view>

#include "base/check.h"
#include "model/config_reader.h"

namespace mmengine {
namespace {

// A config class of transformers and its defaults; 0: there is none.
struct HfClass {
  std::string_view model_type, class_name;
  const char* architecture;
  std::int64_t kv_heads = 0, head_dim = 0, window = 0, context = 0;
  double norm_eps = 1e-6;
  bool nested = false;      // the text model is in text_config, beside a vision_config
  bool ministral = false;   // the class whose rotary embedding is scaled by default
  bool mistral_eos = true;  // a default eos_token_id that is taken
};

constexpr std::array<HfClass, 4> kClasses{{
    {.model_type = "llama",
     .class_name = "LlamaForCausalLM",
     .architecture = "llama",
     .mistral_eos = false},
    {.model_type = "mistral",
     .class_name = "MistralForCausalLM",
     .architecture = "mistral",
     .kv_heads = 8,
     .window = 4096},
    {.model_type = "ministral3",
     .class_name = "Ministral3ForCausalLM",
     .architecture = "mistral",
     .kv_heads = 8,
     .head_dim = 128,
     .context = 262144,
     .norm_eps = 1e-5,
     .ministral = true},
    {.model_type = "mistral3",
     .class_name = "Mistral3ForConditionalGeneration",
     .architecture = "mistral",
     .nested = true},
}};
constexpr const char* kSupported =
    "LlamaForCausalLM with model_type llama, MistralForCausalLM with mistral, "
    "Ministral3ForCausalLM with ministral3, Mistral3ForConditionalGeneration with mistral3";

const HfClass* find_class(std::string_view model_type) {
  const auto* found = std::find_if(kClasses.begin(), kClasses.end(),
                                   [&](const HfClass& c) { return c.model_type == model_type; });
  return found == kClasses.end() ? nullptr : found;
}

const HfClass& read_class(const Fields& fields) {
  if (!fields.has("model_type") && !fields.has("architectures")) {
    fields.missing("model_type", kSupported);
  }
  const std::string type = fields.text("model_type", "");
  const Json& classes = fields.value("architectures");
  if (!classes.is_null() && !classes.is_array()) fields.bad("architectures", "a list of strings");
  for (const HfClass& known : kClasses) {
    const bool same_class = classes.is_null() || classes == Json::array({known.class_name});
    const bool same_type = type.empty() || type == known.model_type;
    if (same_class && same_type) return known;
  }
  const bool architectures_differ = type.empty() || find_class(type) != nullptr;
  fields.unsupported(architectures_differ ? "architectures" : "model_type", kSupported);
}

// Of the text model inside a mistral3 config.
const HfClass& read_text_class(const Fields& text) {
  const std::string type = text.text("model_type", "mistral");
  const HfClass* found = find_class(type);
  if (found == nullptr || type == "llama" || found->nested) {
    text.unsupported("model_type", "'ministral3' and 'mistral'");
  }
  return *found;
}

void refuse_variants(const Fields& fields) {
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    if (fields.flag(bias, false)) fields.unsupported(bias, "false");
  }
  if (fields.text("hidden_act", "silu") != "silu") fields.unsupported("hidden_act", "'silu'");
}

// `fallback` where the key is absent, `null_value` where it is null.
std::int64_t integer_or(const Fields& fields, const char* key, std::int64_t low, std::int64_t high,
                        std::int64_t fallback, std::int64_t null_value) {
  const bool take_fallback = fallback != 0 && !fields.present(key);
  return fields.integer(key, low, high, take_fallback ? fallback : null_value);
}

// The context that a sliding window leaves: within it, windowed and full attention are the same.
std::int64_t read_context(const Fields& fields, const HfClass& hf,
                          std::vector<std::string>& warnings) {
  const std::int64_t length =
      integer_or(fields, "max_position_embeddings", 1, kMaxContext, hf.context, 0);
  const std::int64_t context = context_or_default(length, fields, warnings);
  if (std::string_view(hf.architecture) == "llama") return context;
  const std::int64_t window =
      integer_or(fields, "sliding_window", 1, kMaxContext, hf.window, kMaxContext);
  if (window >= context) return context;
  warnings.push_back(str(fields.file(), ": ", fields.path("sliding_window"), " ",
                         fields.present("sliding_window") ? "" : "is missing, its default ", window,
                         " caps the context"));
  return window;
}

void read_text(const Fields& fields, const HfClass& hf, ModelConfig& config,
               std::vector<std::string>& warnings) {
  config.architecture = hf.architecture;
  refuse_variants(fields);
  config.hidden_size = fields.integer("hidden_size", 1, kMaxHidden);
  config.intermediate_size = fields.integer("intermediate_size", 1, kMaxIntermediate);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  config.num_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.num_heads = fields.integer("num_attention_heads", 1, kMaxHeads);
  config.num_kv_heads =
      integer_or(fields, "num_key_value_heads", 1, kMaxHeads, hf.kv_heads, config.num_heads);
  config.head_dim =
      integer_or(fields, "head_dim", 2, kMaxHeadDim, hf.head_dim, default_head_dim(config));
  check_heads(fields, config,
              {"num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"});
  config.norm_eps = fields.number("rms_norm_eps", kMinEps, kMaxEps, hf.norm_eps);
  config.max_context = read_context(fields, hf, warnings);
  config.rope = read_hf_rope(fields, hf.ministral, warnings);
  if (hf.mistral_eos && !fields.present("eos_token_id")) {
    if (kMistralEos < config.vocab_size) add_eos(config, {kMistralEos});
  } else {
    add_eos(config, fields.integers("eos_token_id", 0, config.vocab_size - 1));
  }
}

const char* dtype_key(const Fields& fields) {
  return fields.has("dtype") ? "dtype" : "torch_dtype";  // newer, older
}

void read_generation_eos(const Directory& directory, ModelConfig& config) {
  constexpr const char* kFile = "generation_config.json";
  if (!directory.has(kFile)) return;
  const Json json = read_json_file(directory, kFile, kMaxConfigBytes);
  const Fields fields(json, directory.display(kFile));
  add_eos(config, fields.integers("eos_token_id", 0, config.vocab_size - 1));
}

}  // namespace

ModelConfig read_hf(const Directory& directory, std::vector<std::string>& warnings) {
  const Json json = read_json_file(directory, "config.json", kMaxConfigBytes);
  const Fields top(json, directory.display("config.json"));
  ModelConfig config;
  const HfClass& outer = read_class(top);
  if (outer.nested && !top.has("text_config")) top.missing("text_config", "an object");
  const Fields text = outer.nested ? top.object("text_config") : top;
  read_text(text, outer.nested ? read_text_class(text) : outer, config, warnings);
  // The class with a vision tower ties by default, and only its own flag counts.
  config.tied_embeddings = top.flag("tie_word_embeddings", outer.nested);
  const char* key = dtype_key(top);
  config.dtype = top.has(key) ? read_dtype(top, key) : read_dtype(text, dtype_key(text));
  read_hf_quantization(top, config);
  if (outer.nested) {
    if (!top.has("quantization_config")) read_hf_quantization(text, config);
    add_eos(config, top.integers("eos_token_id", 0, config.vocab_size - 1));
    config.vision = read_hf_vision(top, config.vocab_size, warnings);
  }
  read_generation_eos(directory, config);
  for (const char* code : {"auto_map", "chat_template"}) {
    if (!top.has(code)) continue;
    warnings.push_back(
        str(top.file(), ": ", code, " is ignored; nothing from a checkpoint is executed"));
    break;
  }
  return config;
}

}  // namespace mmengine
