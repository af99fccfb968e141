#include "model/rope_config.h"

#include <cmath>

#include "base/check.h"
#include "model/fields.h"

namespace mmengine {
namespace {

constexpr double kMinTheta = 1, kMaxTheta = 1e12, kDefaultTheta = 1e4;
constexpr double kMaxFactor = 1e6, kMaxBeta = 1e6, kMaxScale = 1e6, kMaxContext = 1 << 30;

double magnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// An explicit factor wins, even 0; two non-zero mscales give their ratio; else the default.
double resolve_attention_factor(const Fields& rope, double factor) {
  if (rope.has("attention_factor")) return rope.number("attention_factor", 0, kMaxScale, 1);
  const double mscale = rope.number("mscale", 0, kMaxScale, 0);
  const double mscale_all = rope.number("mscale_all_dim", 0, kMaxScale, 0);
  if (mscale != 0 && mscale_all != 0) {
    return magnitude(factor, mscale) / magnitude(factor, mscale_all);
  }
  return magnitude(factor, 1);
}

double number_or(const Fields& fields, const char* key, double most, double fallback) {
  const double value = fields.number(key, 0, most, 0);  // 0 counts as absent
  return value == 0 ? fallback : value;
}

double required(const Fields& fields, const char* key, double most, const char* expected) {
  if (!fields.has(key)) fields.missing(key, expected);
  const double value = fields.number(key, 0, most, 0);
  if (value <= 0) fields.bad(key, expected);
  return value;
}

std::string rope_type(const Fields& rope) {
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  if (type != "default" && type != "yarn") {
    rope.unsupported(rope.has("rope_type") ? "rope_type" : "type", "'default' and 'yarn'");
  }
  return type;
}

void refuse_variants(const Fields& fields, const char* key) {
  const Fields rope = fields.object(key);
  if (rope.number("partial_rotary_factor", 0, 1, 1) != 1) {
    rope.unsupported("partial_rotary_factor", "1");
  }
  if (rope.number("llama_4_scaling_beta", 0, kMaxScale, 0) != 0) {
    rope.unsupported("llama_4_scaling_beta", "0 or null");
  }
  for (const auto& [name, value] : fields.value(key).items()) {
    if (value.is_object()) rope.unsupported(name.c_str(), "one rotary embedding for all layers");
  }
}

void read_hf_yarn(const Fields& rope, RopeConfig& config) {
  config.factor = required(rope, "factor", kMaxFactor, "a number above 0");
  config.original_context =
      required(rope, "original_max_position_embeddings", kMaxContext, "a number of tokens");
  config.beta_fast = number_or(rope, "beta_fast", kMaxBeta, 32);
  config.beta_slow = number_or(rope, "beta_slow", kMaxBeta, 1);
  config.truncate = rope.flag("truncate", true);
  config.attention_factor = resolve_attention_factor(rope, config.factor);
}

}  // namespace

RopeConfig read_hf_rope(const Fields& fields) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) refuse_variants(fields, key);
  if (fields.number("partial_rotary_factor", 0, 1, 1) != 1) {
    fields.unsupported("partial_rotary_factor", "1");
  }
  RopeConfig config;
  const Fields rope = fields.object("rope_parameters"), scaling = fields.object("rope_scaling");
  const double top = fields.number("rope_theta", kMinTheta, kMaxTheta, kDefaultTheta);
  config.theta = rope.number("rope_theta", kMinTheta, kMaxTheta, top);
  if (fields.has("rope_theta") && config.theta != top) {
    fields.bad("rope_theta", str("the same as rope_parameters.rope_theta = ", config.theta));
  }
  // rope_parameters is the newer name of the same object; transformers reads it first.
  const bool newer = rope_type(rope) == "yarn", older = rope_type(scaling) == "yarn";
  if (newer || older) read_hf_yarn(newer ? rope : scaling, config);
  return config;
}

RopeConfig read_mistral_rope(const Fields& fields) {
  if (fields.has("llama_4_scaling")) fields.unsupported("llama_4_scaling", "null");
  RopeConfig config;
  config.theta = fields.number("rope_theta", kMinTheta, kMaxTheta, kDefaultTheta);
  if (!fields.has("yarn")) return config;
  const Fields yarn = fields.object("yarn");
  config.factor = required(yarn, "factor", kMaxFactor, "a number above 0");
  config.original_context =
      required(yarn, "original_max_position_embeddings", kMaxContext, "a number of tokens");
  config.beta_fast = number_or(yarn, "beta", kMaxBeta, 32);
  config.beta_slow = number_or(yarn, "alpha", kMaxBeta, 1);
  config.attention_factor = yarn.flag("apply_scale", true) ? magnitude(config.factor, 1) : 1.0;
  return config;
}

}  // namespace mmengine
