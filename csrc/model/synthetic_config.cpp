// The names of synthetic models, and the params.json that each stands for.
#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/check.h"
#include "model/config_reader.h"
#include "model/synthetic.h"

namespace mmengine {
namespace {

// model-spec 1.1 and 5.
constexpr const char* kMedium = R"({
  "dim": 12288, "n_layers": 88, "head_dim": 128, "hidden_dim": 28672, "n_heads": 96,
  "n_kv_heads": 8, "rope_theta": 1e6, "norm_eps": 1e-5, "vocab_size": 131072,
  "tied_embeddings": false, "max_position_embeddings": 262144,
  "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
  "yarn": {"original_max_position_embeddings": 4096, "factor": 64, "apply_scale": true,
           "beta": 4, "alpha": 1},
  "vision_encoder": {
    "hidden_size": 1664, "num_hidden_layers": 48, "num_attention_heads": 16,
    "intermediate_size": 8192, "patch_size": 14, "image_size": 1540, "num_channels": 3,
    "rope_theta": 1e4, "spatial_merge_size": 2, "mm_projector_id": "patch_merge",
    "add_pre_mm_projector_layer_norm": true, "adapter_bias": false, "image_token_id": 10}
})";

// The published config.json of Llama 3.2 1B.
constexpr const char* kLlama1b = R"({
  "dim": 2048, "n_layers": 16, "head_dim": 64, "hidden_dim": 8192, "n_heads": 32,
  "n_kv_heads": 8, "rope_theta": 5e5, "norm_eps": 1e-5, "vocab_size": 128256,
  "tied_embeddings": true, "max_position_embeddings": 131072,
  "llama_3_scaling": {"original_max_position_embeddings": 8192, "factor": 32,
                      "low_freq_factor": 1, "high_freq_factor": 4}
})";

constexpr std::array<std::pair<std::string_view, const char*>, 2> kModels{
    {{"mistral-medium-3.5", kMedium}, {"llama-3.2-1b", kLlama1b}}};

struct Parts {
  std::string_view name, options;
  bool file = false;
};

// A path may have commas in its folders, so options begin after the last ".json".
Parts split(std::string_view text) {
  constexpr std::string_view kEnd = ".json";
  const std::size_t found = text.rfind(kEnd);
  const bool file = found != std::string_view::npos;
  const std::size_t end = file ? found + kEnd.size() : std::min(text.find(','), text.size());
  return {text.substr(0, end), text.substr(end), file};
}

std::optional<std::int64_t> read_layers(const std::string& where, std::string_view options) {
  constexpr std::string_view kLayers = "layers=";
  std::optional<std::int64_t> layers;
  while (!options.empty()) {
    const std::size_t end = std::min(options.find(',', 1), options.size());
    const std::string_view option = options.substr(1, end - 1);
    if (options[0] != ',' || !option.starts_with(kLayers)) {
      fail(ErrorCode::usage, where, "unknown option ", printable(option), ", expected layers=N");
    }
    const std::string digits(option.substr(kLayers.size()));
    const bool number = !digits.empty() && digits.size() <= 4 &&
                        digits.find_first_not_of("0123456789") == std::string::npos;
    const std::int64_t value = number ? std::stoll(digits) : 0;
    if (value < 1 || value > kMaxLayers) {
      fail(ErrorCode::usage, where, "layers: expected 1 to ", kMaxLayers, ", got ",
           printable(digits));
    }
    if (layers) fail(ErrorCode::usage, where, "layers: expected once, got it twice");
    layers = value;
    options.remove_prefix(end);
  }
  return layers;
}

Json read_file(std::string_view path, std::string& shown_as) {
  const std::size_t slash = path.rfind('/');
  const bool here = slash == std::string_view::npos;
  const Directory directory(here ? "." : std::string(path.substr(0, slash + 1)));
  const std::string name(here ? path : path.substr(slash + 1));
  shown_as = directory.display(name);
  return read_json_file(directory, name, kMaxConfigBytes);
}

}  // namespace

ModelConfig read_synthetic(const std::string& model, std::vector<std::string>& warnings) {
  const std::string where = str("model ", printable(model));
  const Parts parts = split(std::string_view(model).substr(kSynthetic.size()));
  std::string file(parts.name);
  Json params;
  for (const auto& [name, text] : kModels) {
    if (parts.name == name) params = parse_json(text, {file});
  }
  if (params.is_null() && (!parts.file || model.find('\0') != std::string::npos)) {
    std::string known;
    for (const auto& [name, text] : kModels) known += str(name, ", ");
    throw Error(ErrorCode::model_not_found, where,
                str("no such synthetic model, expected ", known,
                    "or the path of a params.json, and after it ,layers=N where it should have "
                    "other than its own"),
                {.reason = "missing"});
  }
  const std::optional<std::int64_t> layers = read_layers(where, parts.options);
  if (params.is_null()) params = read_file(parts.name, file);
  if (layers) params["n_layers"] = *layers;
  return read_params(params, file, warnings);
}

}  // namespace mmengine
