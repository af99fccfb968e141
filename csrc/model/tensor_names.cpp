// Names are taken apart as PREFIX layers.N. STEM SUFFIX and put together again.
#include "model/tensor_names.h"

#include <algorithm>
#include <array>

#include "base/check.h"

namespace mmengine {
namespace {

struct Stem {
  std::string_view ours, hugging_face, mistral;
  std::string_view in(CheckpointLayout layout) const {
    return layout == CheckpointLayout::mistral ? mistral : hugging_face;
  }
};

constexpr std::array<Stem, 9> kLayerStems{{
    {"input_norm", "input_layernorm", "attention_norm"},
    {"q_proj", "self_attn.q_proj", "attention.wq"},
    {"k_proj", "self_attn.k_proj", "attention.wk"},
    {"v_proj", "self_attn.v_proj", "attention.wv"},
    {"o_proj", "self_attn.o_proj", "attention.wo"},
    {"post_norm", "post_attention_layernorm", "ffn_norm"},
    {"gate_proj", "mlp.gate_proj", "feed_forward.w1"},
    {"up_proj", "mlp.up_proj", "feed_forward.w3"},
    {"down_proj", "mlp.down_proj", "feed_forward.w2"},
}};
constexpr std::array<Stem, 2> kModelStems{{
    {"embed_tokens", "embed_tokens", "tok_embeddings"},
    {"norm", "norm", "norm"},
}};
constexpr Stem kHead{"lm_head", "lm_head", "output"};
constexpr std::array<std::string_view, 3> kHuggingFacePrefixes{"model.language_model.",
                                                               "language_model.model.", "model."};
constexpr std::string_view kLayers = "layers.", kScale = ".weight_scale";

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

bool take_suffix(std::string_view& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.remove_suffix(suffix.size());
  return true;
}

// "layers.12." off the front of `text`; "" when it does not begin so, with 12 as printed by us.
std::string_view take_layer(std::string_view& text) {
  const std::string_view whole = text;
  if (!take_prefix(text, kLayers)) return {};
  const std::size_t dot = text.find('.');
  const std::string_view number = text.substr(0, dot);
  const bool canonical = dot != std::string_view::npos && !number.empty() && number.size() <= 9 &&
                         number.find_first_not_of("0123456789") == std::string_view::npos &&
                         (number == "0" || number.front() != '0');
  text = canonical ? text.substr(dot + 1) : whole;
  return canonical ? whole.substr(0, kLayers.size() + dot + 1) : std::string_view();
}

template <std::size_t kCount>
std::string_view find_ours(const std::array<Stem, kCount>& stems, CheckpointLayout layout,
                           std::string_view stem) {
  for (const Stem& entry : stems) {
    if (entry.in(layout) == stem) return entry.ours;
  }
  return {};
}

}  // namespace

std::string our_name(CheckpointLayout layout, std::string_view source, std::int64_t num_layers) {
  std::string_view stem = source;
  std::string_view suffix;
  if (take_suffix(stem, ".weight_scale_inv") || take_suffix(stem, ".qscale_weight")) {
    suffix = kScale;
  } else if (!take_suffix(stem, ".weight")) {
    return {};
  }
  bool in_model = layout == CheckpointLayout::mistral;
  if (layout == CheckpointLayout::hugging_face) {
    if (stem == "lm_head" || stem == "language_model.lm_head") return str(kHead.ours, suffix);
    for (std::string_view prefix : kHuggingFacePrefixes) {
      in_model = in_model || take_prefix(stem, prefix);
    }
  } else if (stem == kHead.mistral) {
    return str(kHead.ours, suffix);
  }
  if (!in_model) return {};
  const std::string_view layer = take_layer(stem);
  if (!layer.empty() && std::stoll(std::string(layer.substr(kLayers.size()))) >= num_layers) {
    return {};
  }
  const std::string_view ours =
      layer.empty() ? find_ours(kModelStems, layout, stem) : find_ours(kLayerStems, layout, stem);
  return ours.empty() ? std::string() : str(layer, ours, suffix);
}

std::string source_name(CheckpointLayout layout, std::string_view ours) {
  const bool mistral = layout == CheckpointLayout::mistral;
  std::string_view stem = ours;
  const bool scale = take_suffix(stem, kScale);
  const std::string_view suffix = !scale    ? ".weight"
                                  : mistral ? ".qscale_weight"
                                            : ".weight_scale_inv";
  if (stem == kHead.ours) return str(kHead.in(layout), suffix);
  const std::string_view layer = take_layer(stem);
  const auto find = [&](const auto& stems) {
    const auto* entry = std::find_if(stems.begin(), stems.end(),
                                     [&](const Stem& candidate) { return candidate.ours == stem; });
    return entry == stems.end() ? stem : entry->in(layout);
  };
  return str(mistral ? "" : "model.", layer, layer.empty() ? find(kModelStems) : find(kLayerStems),
             suffix);
}

bool is_harmless(std::string_view source) {
  constexpr std::array<std::string_view, 8> kPrefixes{
      "model.vision_tower.",    "vision_tower.",         "model.multi_modal_projector.",
      "multi_modal_projector.", "vision_encoder.",       "vision_language_adapter.",
      "patch_merger.",          "pre_mm_projector_norm."};
  if (source.ends_with("rotary_emb.inv_freq") || source == "rope.freqs") return true;
  return std::any_of(kPrefixes.begin(), kPrefixes.end(),
                     [&](std::string_view prefix) { return source.starts_with(prefix); });
}

std::vector<std::string> required_names(std::int64_t num_layers) {
  std::vector<std::string> names;
  for (const Stem& stem : kModelStems) names.emplace_back(stem.ours);
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    for (const Stem& stem : kLayerStems) names.push_back(str(kLayers, layer, ".", stem.ours));
  }
  return names;
}

}  // namespace mmengine
