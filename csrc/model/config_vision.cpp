// The Pixtral tower in both layouts (model-spec 1.1, 4.3, 5). What is computed here is one shape of
// it: SiLU, no biases, a norm before the projector, patches merged.
#include "base/check.h"
#include "model/config_reader.h"

namespace mmengine {
namespace {

constexpr std::int64_t kMaxSide = 1 << 16, kMaxMerge = 16, kMaxChannels = 16;
constexpr double kMinTheta = 1, kMaxTheta = 1e12, kPixtralTheta = 1e4;

void warn_text_only(const Fields& vision, std::vector<std::string>& warnings) {
  std::string block = vision.path("");
  block.pop_back();  // the dot
  warnings.push_back(str(vision.file(), ": ", block,
                         ": images are not read by this version; the model answers text"));
}

// The fields that both layouts call the same.
VisionConfig read_tower(const Fields& vision) {
  VisionConfig config;
  config.hidden_size = vision.integer("hidden_size", 1, kMaxHidden);
  config.intermediate_size = vision.integer("intermediate_size", 1, kMaxIntermediate);
  config.num_layers = vision.integer("num_hidden_layers", 1, kMaxLayers);
  config.num_heads = vision.integer("num_attention_heads", 1, kMaxHeads);
  if (config.hidden_size % config.num_heads != 0) {
    vision.bad("num_attention_heads",
               str("a divisor of ", vision.path("hidden_size"), " = ", config.hidden_size));
  }
  config.head_dim = config.hidden_size / config.num_heads;
  // A 2-D rotary embedding gives every other pair to the row, the rest to the column.
  if (config.head_dim % 4 != 0 || config.head_dim > kMaxHeadDim) {
    vision.bad("num_attention_heads",
               str("heads of a width in [4, ", kMaxHeadDim, "] that is a multiple of 4"));
  }
  // transformers takes the projections' width from the quotient, so another value fits nothing.
  if (vision.integer("head_dim", 1, kMaxHeadDim, config.head_dim) != config.head_dim) {
    vision.bad("head_dim", str(vision.path("hidden_size"), " / ",
                               vision.path("num_attention_heads"), " = ", config.head_dim));
  }
  return config;
}

void read_image(const Fields& vision, VisionConfig& config) {
  config.num_channels = vision.integer("num_channels", 1, kMaxChannels, 3);
  if (config.image_size < config.patch_size) {
    vision.bad("image_size", str("at least ", vision.path("patch_size"), " = ", config.patch_size));
  }
}

}  // namespace

VisionConfig read_hf_vision(const Fields& top, std::int64_t vocab_size,
                            std::vector<std::string>& warnings) {
  constexpr std::int64_t kDefaultPatch = 16, kDefaultImage = 1024, kDefaultImageToken = 10;
  if (!top.has("vision_config")) top.missing("vision_config", "an object");
  const Fields vision = top.object("vision_config");
  if (vision.text("model_type", "pixtral") != "pixtral") {
    vision.unsupported("model_type", "'pixtral'");
  }
  // transformers computes a GELU where the key is absent, which no tower of Mistral's has.
  if (vision.text("hidden_act", "gelu") != "silu") vision.unsupported("hidden_act", "'silu'");
  VisionConfig config = read_tower(vision);
  config.patch_size = vision.integer("patch_size", 1, kMaxSide, kDefaultPatch);
  config.image_size = vision.integer("image_size", 1, kMaxSide, kDefaultImage);
  read_image(vision, config);
  const Fields rope = vision.object("rope_parameters");
  const std::string type = rope.text("rope_type", rope.text("type", "axial"));
  if (type != "axial" && type != "default") rope.unsupported("rope_type", "'axial'");
  const double theta = vision.number("rope_theta", kMinTheta, kMaxTheta, kPixtralTheta);
  config.rope_theta = rope.number("rope_theta", kMinTheta, kMaxTheta, theta);
  if (top.text("projector_hidden_act", "gelu") != "gelu") {
    top.unsupported("projector_hidden_act", "'gelu'");
  }
  if (top.flag("multimodal_projector_bias", false)) {
    top.unsupported("multimodal_projector_bias", "false");
  }
  if (top.has("vision_feature_layer") && top.value("vision_feature_layer") != -1) {
    top.unsupported("vision_feature_layer", "-1");
  }
  config.spatial_merge_size = top.integer("spatial_merge_size", 1, kMaxMerge, 2);
  // Two names of one field; transformers writes the first.
  const std::int64_t token = top.integer("image_token_id", 0, vocab_size - 1, kDefaultImageToken);
  config.image_token_id =
      static_cast<std::int32_t>(top.integer("image_token_index", 0, vocab_size - 1, token));
  if (config.image_token_id >= vocab_size) {
    top.missing("image_token_index", str("an integer in [0, ", vocab_size - 1, "]"));
  }
  warn_text_only(vision, warnings);
  return config;
}

std::optional<VisionConfig> read_mistral_vision(const Fields& fields, std::int64_t vocab_size,
                                                std::vector<std::string>& warnings) {
  if (!fields.has("vision_encoder")) return std::nullopt;
  const Fields vision = fields.object("vision_encoder");
  VisionConfig config = read_tower(vision);
  config.patch_size = vision.integer("patch_size", 1, kMaxSide);
  config.image_size = vision.integer("image_size", 1, kMaxSide);
  read_image(vision, config);
  vision.integer("max_image_size", 1, kMaxSide, config.image_size);  // tekken.json's decides
  config.rope_theta = vision.number("rope_theta", kMinTheta, kMaxTheta, kPixtralTheta);
  if (vision.text("mm_projector_id", "") != "patch_merge") {
    vision.unsupported("mm_projector_id", "'patch_merge'");
  }
  if (!vision.flag("add_pre_mm_projector_layer_norm", false)) {
    vision.unsupported("add_pre_mm_projector_layer_norm", "true");
  }
  if (vision.flag("adapter_bias", true)) vision.unsupported("adapter_bias", "false");
  config.spatial_merge_size = vision.integer("spatial_merge_size", 1, kMaxMerge);
  config.image_token_id =
      static_cast<std::int32_t>(vision.integer("image_token_id", 0, vocab_size - 1));
  for (const char* token : {"image_break_token_id", "image_end_token_id"}) {
    vision.integer(token, 0, vocab_size - 1, 0);
  }
  warn_text_only(vision, warnings);
  return config;
}

}  // namespace mmengine
