// params.json. Unknown keys are tolerated; a known key that would change the computation and is not
// understood is an error, never ignored.
#include <algorithm>
#include <optional>

#include "base/check.h"
#include "model/config_reader.h"

namespace mmengine {
namespace {

void refuse_variants(const Fields& fields) {
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

std::int64_t read_context(const Fields& fields, std::vector<std::string>& warnings) {
  const std::int64_t length = fields.integer("max_position_embeddings", 1, kMaxContext,
                                             fields.integer("max_seq_len", 1, kMaxContext, 0));
  const std::optional<std::int64_t> window = smallest_window(fields);
  if (length == 0 && window) return *window;
  const std::int64_t context = context_or_default(length, fields, warnings);
  if (!window || *window >= context) return context;
  warnings.push_back(str(fields.file(), ": sliding_window ", *window, " caps the context"));
  return *window;
}

std::vector<std::int64_t> read_eos(const Fields& fields, std::int64_t vocab_size) {
  if (fields.has("mmengine")) {
    const Fields ours = fields.object("mmengine");
    if (ours.integer("format", 1, INT32_MAX) != 1) ours.unsupported("format", "1");
    if (ours.has("eos_token_ids")) return ours.integers("eos_token_ids", 0, vocab_size - 1);
  }
  if (kMistralEos < vocab_size) return {kMistralEos};
  return {};
}

}  // namespace

ModelConfig read_mistral(const Directory& directory, std::vector<std::string>& warnings) {
  const Json json = read_json_file(directory, "params.json", kMaxConfigBytes);
  return read_params(json, directory.display("params.json"), warnings);
}

ModelConfig read_params(const Json& params, const std::string& file,
                        std::vector<std::string>& warnings) {
  const Fields fields(params, file);
  ModelConfig config;
  config.architecture = "mistral";
  refuse_variants(fields);
  config.hidden_size = fields.integer("dim", 1, kMaxHidden);
  config.intermediate_size = fields.integer("hidden_dim", 1, kMaxIntermediate);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  config.num_layers = fields.integer("n_layers", 1, kMaxLayers);
  config.num_heads = fields.integer("n_heads", 1, kMaxHeads);
  config.num_kv_heads = fields.integer("n_kv_heads", 1, kMaxHeads, config.num_heads);
  config.head_dim = fields.integer("head_dim", 2, kMaxHeadDim, default_head_dim(config));
  check_heads(fields, config, {"n_heads", "n_kv_heads", "head_dim", "dim"});
  config.norm_eps = fields.number("norm_eps", kMinEps, kMaxEps, 1e-5);
  config.dtype = read_dtype(fields, "dtype");
  config.rope = read_mistral_rope(fields);
  config.tied_embeddings = fields.flag("tied_embeddings", false);
  config.max_context = read_context(fields, warnings);
  read_mistral_quantization(fields, config);
  config.vision = read_mistral_vision(fields, config.vocab_size, warnings);
  if (fields.has("multimodal")) {
    warnings.push_back(str(fields.file(), ": multimodal is ignored; this version takes text only"));
  }
  add_eos(config, read_eos(fields, config.vocab_size));
  return config;
}

}  // namespace mmengine
