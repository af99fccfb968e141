// Names are taken apart as PREFIX layers.N. STEM SUFFIX and put together again.
#include "model/tensor_names.h"

#include <algorithm>
#include <array>
#include <span>

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
constexpr std::array<Stem, 9> kVisionLayerStems{{
    {"input_norm", "attention_norm", "attention_norm"},
    {"q_proj", "attention.q_proj", "attention.wq"},
    {"k_proj", "attention.k_proj", "attention.wk"},
    {"v_proj", "attention.v_proj", "attention.wv"},
    {"o_proj", "attention.o_proj", "attention.wo"},
    {"post_norm", "ffn_norm", "ffn_norm"},
    {"gate_proj", "feed_forward.gate_proj", "feed_forward.w1"},
    {"up_proj", "feed_forward.up_proj", "feed_forward.w3"},
    {"down_proj", "feed_forward.down_proj", "feed_forward.w2"},
}};
constexpr std::array<Stem, 2> kVisionStems{{
    {"patch_conv", "patch_conv", "patch_conv"},
    {"ln_pre", "ln_pre", "ln_pre"},
}};
constexpr std::array<Stem, 4> kProjectorStems{{
    {"norm", "norm", "pre_mm_projector_norm"},
    {"merging_layer", "patch_merger.merging_layer", "patch_merger.merging_layer"},
    {"linear_1", "linear_1", "vision_language_adapter.w_in"},
    {"linear_2", "linear_2", "vision_language_adapter.w_out"},
}};

constexpr std::array<std::string_view, 3> kTextPrefixes{"model.", "model.language_model.",
                                                        "language_model.model."};
constexpr std::array<std::string_view, 2> kVisionPrefixes{"model.vision_tower.", "vision_tower."};
constexpr std::array<std::string_view, 2> kProjectorPrefixes{"model.multi_modal_projector.",
                                                             "multi_modal_projector."};
constexpr std::array<std::string_view, 1> kMistralVisionPrefix{"vision_encoder."}, kNoPrefix{""};

// A part of a model whose names begin alike; of several prefixes the usual one is first.
struct Part {
  std::string_view ours;
  std::span<const std::string_view> hugging_face, mistral;
  std::string_view before_layers;  // in both layouts, before "layers.N."
  std::span<const Stem> stems, layer_stems;
  std::span<const std::string_view> prefixes(CheckpointLayout layout) const {
    return layout == CheckpointLayout::mistral ? mistral : hugging_face;
  }
};

constexpr Part kText{"", kTextPrefixes, kNoPrefix, "", kModelStems, kLayerStems};
constexpr Part kVision{"vision.",      kVisionPrefixes, kMistralVisionPrefix,
                       "transformer.", kVisionStems,    kVisionLayerStems};
constexpr Part kProjector{"projector.", kProjectorPrefixes, kNoPrefix, "", kProjectorStems, {}};
constexpr std::array<const Part*, 3> kParts{&kText, &kVision, &kProjector};

constexpr std::string_view kLayers = "layers.";

struct Suffix {
  std::string_view ours, hugging_face, mistral;
};
constexpr std::array<Suffix, 5> kSuffixes{{
    {"", ".weight", ".weight"},
    {kWeightScale, ".weight_scale_inv", ".qscale_weight"},
    {kInputScale, ".activation_scale", ".qscale_act"},
    {kWeightScale, ".weight_scale", ".weight_scale"},  // of groups
    {kWeightMin, ".weight_min", ".weight_min"},
}};

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

std::int64_t layer_number(std::string_view layer) {  // of "layers.12."
  return std::stoll(std::string(layer.substr(kLayers.size())));
}

std::string_view find_ours(std::span<const Stem> stems, CheckpointLayout layout,
                           std::string_view stem) {
  for (const Stem& entry : stems) {
    if (entry.in(layout) == stem) return entry.ours;
  }
  return {};
}

// Ours of a stem without the prefix of its part.
std::string name_in_part(const Part& part, CheckpointLayout layout, std::string_view stem,
                         std::int64_t num_layers) {
  std::string_view inner = stem;
  const std::string_view layer =
      take_prefix(inner, part.before_layers) ? take_layer(inner) : std::string_view();
  if (layer.empty()) {
    const std::string_view ours = find_ours(part.stems, layout, stem);
    return ours.empty() ? std::string() : str(part.ours, ours);
  }
  const std::string_view ours = find_ours(part.layer_stems, layout, inner);
  if (ours.empty() || layer_number(layer) >= num_layers) return {};
  return str(part.ours, layer, ours);
}

std::string name_of_stem(CheckpointLayout layout, std::string_view stem,
                         const ModelConfig& config) {
  const bool mistral = layout == CheckpointLayout::mistral;
  if (stem == kHead.in(layout) || (!mistral && stem == "language_model.lm_head")) {
    return std::string(kHead.ours);
  }
  if (mistral && stem == kDraftLinear) return kDraftLinear;
  for (const Part* part : kParts) {
    if (part != &kText && !config.vision) continue;
    const std::int64_t layers = part == &kText ? config.num_layers : config.vision->num_layers;
    for (std::string_view prefix : part->prefixes(layout)) {
      std::string_view rest = stem;
      if (!take_prefix(rest, prefix)) continue;
      std::string ours = name_in_part(*part, layout, rest, layers);
      if (!ours.empty()) return ours;
    }
  }
  return {};
}

// The part of one of our names; takes its prefix off.
const Part& take_part(std::string_view& ours) {
  if (take_prefix(ours, kVision.ours)) return kVision;
  if (take_prefix(ours, kProjector.ours)) return kProjector;
  return kText;
}

}  // namespace

std::string our_name(CheckpointLayout layout, std::string_view source, const ModelConfig& config) {
  for (const Suffix& suffix : kSuffixes) {
    std::string_view stem = source;
    // Each layout's suffixes are taken in both: exports mix them.
    if (!take_suffix(stem, suffix.hugging_face) && !take_suffix(stem, suffix.mistral)) continue;
    const std::string ours = name_of_stem(layout, stem, config);
    return ours.empty() ? ours : str(ours, suffix.ours);
  }
  return {};
}

std::string source_name(CheckpointLayout layout, std::string_view ours) {
  const bool mistral = layout == CheckpointLayout::mistral;
  std::string_view stem = ours, suffix = ".weight";
  for (const Suffix& scale : std::span(kSuffixes).subspan(1)) {
    if (take_suffix(stem, scale.ours)) suffix = mistral ? scale.mistral : scale.hugging_face;
  }
  if (stem == kHead.ours) return str(kHead.in(layout), suffix);
  if (stem == kDraftLinear) return str(stem, suffix);
  const Part& part = take_part(stem);
  const std::string_view layer = take_layer(stem);
  const auto& stems = layer.empty() ? part.stems : part.layer_stems;
  const auto found = std::find_if(stems.begin(), stems.end(),
                                  [&](const Stem& candidate) { return candidate.ours == stem; });
  return str(part.prefixes(layout).front(), layer.empty() ? "" : part.before_layers, layer,
             found == stems.end() ? stem : found->in(layout), suffix);
}

Unnamed purpose_of_unnamed(std::string_view source) {
  if (source.ends_with("_fake_quantizer.qscale_act")) return Unnamed::kv_scale;
  if (source.ends_with("rotary_emb.inv_freq") || source == "rope.freqs") return Unnamed::unused;
  constexpr std::array<std::string_view, 8> kPrefixes{
      "model.vision_tower.",    "vision_tower.",         "model.multi_modal_projector.",
      "multi_modal_projector.", "vision_encoder.",       "vision_language_adapter.",
      "patch_merger.",          "pre_mm_projector_norm."};
  const bool vision = std::any_of(kPrefixes.begin(), kPrefixes.end(), [&](std::string_view prefix) {
    return source.starts_with(prefix);
  });
  return vision ? Unnamed::unused : Unnamed::unknown;
}

std::vector<std::string> required_names(std::int64_t num_layers, bool draft_head) {
  std::vector<std::string> names{draft_head ? kDraftLinear : "embed_tokens", "norm"};
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    for (const Stem& stem : kLayerStems) names.push_back(str(kLayers, layer, ".", stem.ours));
  }
  return names;
}

std::vector<std::string> vision_names(const VisionConfig& config) {
  std::vector<std::string> names;
  for (const Part* part : {&kVision, &kProjector}) {
    for (const Stem& stem : part->stems) names.push_back(str(part->ours, stem.ours));
  }
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const Stem& stem : kVisionLayerStems) {
      names.push_back(str(kVision.ours, kLayers, layer, ".", stem.ours));
    }
  }
  return names;
}

bool is_vision(std::string_view ours) {
  return ours.starts_with(kVision.ours) || ours.starts_with(kProjector.ours);
}

bool may_have_groups(std::string_view ours) {
  if (ours == "embed_tokens" || ours == kHead.ours) return true;
  return ours.starts_with(kLayers) && ours.ends_with("_proj");
}

}  // namespace mmengine
