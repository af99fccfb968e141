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

RopeType read_type(const Fields& rope) {
  const std::string name = rope.text("rope_type", rope.text("type", "default"));
  for (const RopeType type : {RopeType::plain, RopeType::yarn, RopeType::llama3}) {
    if (name == rope_type_name(type)) return type;
  }
  rope.unsupported(rope.has("rope_type") ? "rope_type" : "type", "'default', 'yarn' and 'llama3'");
}

void refuse_variants(const Fields& fields, const char* key) {
  const Fields rope = fields.object(key);
  if (rope.number("partial_rotary_factor", 0, 1, 1) != 1) {
    rope.unsupported("partial_rotary_factor", "1");
  }
  for (const auto& [name, value] : fields.value(key).items()) {
    if (value.is_object()) rope.unsupported(name.c_str(), "one rotary embedding for all layers");
  }
}

// What transformers' Ministral3Config takes where a file has no rope_parameters.
const Json& ministral_default() {
  static const Json kDefault = {{"type", "yarn"},
                                {"rope_theta", 1e6},
                                {"factor", 16.0},
                                {"original_max_position_embeddings", 16384},
                                {"beta_fast", 32.0},
                                {"beta_slow", 1.0},
                                {"mscale_all_dim", 1.0},
                                {"mscale", 1.0},
                                {"llama_4_scaling_beta", 0.1}};
  return kDefault;
}

// The one object that transformers reads: an older rope_scaling hides a rope_parameters.
Fields effective_rope(const Fields& fields, bool ministral) {
  const Fields scaling = fields.object("rope_scaling");
  if (fields.has("rope_scaling") && !fields.value("rope_scaling").empty()) return scaling;
  if (ministral && !fields.has("rope_parameters")) {
    return Fields(ministral_default(), fields.file(), fields.path("rope_parameters."));
  }
  return fields.object("rope_parameters");
}

// The factor that the length asks for where it is null; one that is absent is an error there, too.
double yarn_factor(const Fields& fields, const Fields& rope, double original) {
  const double context = fields.number("max_position_embeddings", 1, kMaxContext, 0);
  if (rope.present("factor") && !rope.has("factor") && context > 0) return context / original;
  return required(rope, "factor", kMaxFactor, "a number above 0");
}

double original_context(const Fields& rope) {
  return required(rope, "original_max_position_embeddings", kMaxContext, "a number of tokens");
}

// transformers fills an absent one with the whole length.
double original_context(const Fields& fields, const Fields& rope) {
  const double context = fields.number("max_position_embeddings", 1, kMaxContext, 0);
  const bool given = rope.present("original_max_position_embeddings") || context == 0;
  return given ? original_context(rope) : context;
}

void read_hf_yarn(const Fields& fields, const Fields& rope, RopeConfig& config) {
  config.original_context = original_context(fields, rope);
  config.factor = yarn_factor(fields, rope, config.original_context);
  config.beta_fast = number_or(rope, "beta_fast", kMaxBeta, 32);
  config.beta_slow = number_or(rope, "beta_slow", kMaxBeta, 1);
  // transformers takes a null for no.
  config.truncate = rope.flag("truncate", !rope.present("truncate"));
  config.attention_factor = resolve_attention_factor(rope, config.factor);
}

// The three numbers beside the original context, which both layouts call the same.
void read_llama3(const Fields& rope, RopeConfig& config) {
  constexpr const char* kExpected = "a number above 0";
  config.factor = required(rope, "factor", kMaxFactor, kExpected);
  config.low_freq_factor = required(rope, "low_freq_factor", kMaxBeta, kExpected);
  config.high_freq_factor = required(rope, "high_freq_factor", kMaxBeta, kExpected);
  if (config.high_freq_factor <= config.low_freq_factor) {
    rope.bad("high_freq_factor", str("a number above low_freq_factor = ", config.low_freq_factor));
  }
}

void read_hf_query_scaling(const Fields& rope, bool ministral, RopeConfig& config) {
  const double beta = rope.number("llama_4_scaling_beta", 0, kMaxScale, 0);
  if (beta == 0) return;
  // Other classes of transformers pass over the key, other engines do not: no answer is safe.
  if (!ministral) rope.unsupported("llama_4_scaling_beta", "0 or null but for ministral3");
  config.scaling_beta = beta;
  const bool known = config.type != RopeType::plain;
  config.scaling_context = known ? config.original_context : original_context(rope);
}

// Medium 3.5's first config.json had mscale_all_dim 1, which makes the factor 1; its second has 0
// (model-spec 9.2). For any other model the file's word stands.
void repair_medium(const Fields& fields, const Fields& rope, RopeConfig& config,
                   std::vector<std::string>& warnings) {
  constexpr double kHidden = 12288, kLayers = 88, kContext = 4096, kFactor = 64;
  const bool medium = fields.number("hidden_size", 0, 1e12, 0) == kHidden &&
                      fields.number("num_hidden_layers", 0, 1e12, 0) == kLayers &&
                      config.original_context == kContext && config.factor == kFactor;
  const bool wrong = rope.number("mscale", 0, kMaxScale, 0) == 1 &&
                     rope.number("mscale_all_dim", 0, kMaxScale, 0) == 1 &&
                     !rope.has("attention_factor");
  if (!medium || !wrong) return;
  config.attention_factor = magnitude(config.factor, 1);
  warnings.push_back(str(fields.file(), ": ", rope.path("mscale_all_dim"),
                         " is 1, a known mistake in the first config of Mistral Medium 3.5; it is "
                         "read as 0, so the attention factor is ",
                         config.attention_factor));
}

void read_mistral_yarn(const Fields& yarn, RopeConfig& config) {
  config.factor = required(yarn, "factor", kMaxFactor, "a number above 0");
  config.original_context = original_context(yarn);
  config.beta_fast = number_or(yarn, "beta", kMaxBeta, 32);
  config.beta_slow = number_or(yarn, "alpha", kMaxBeta, 1);
  const double factor = yarn.flag("apply_scale", true) ? magnitude(config.factor, 1) : 1.0;
  config.attention_factor = yarn.number("attention_factor", 0, kMaxScale, factor);
  config.truncate = yarn.flag("truncate", true);
}

}  // namespace

const char* rope_type_name(RopeType type) {
  if (type == RopeType::plain) return "default";
  return type == RopeType::yarn ? "yarn" : "llama3";
}

RopeConfig read_hf_rope(const Fields& fields, bool ministral, std::vector<std::string>& warnings) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) refuse_variants(fields, key);
  if (fields.number("partial_rotary_factor", 0, 1, 1) != 1) {
    fields.unsupported("partial_rotary_factor", "1");
  }
  RopeConfig config;
  const Fields rope = effective_rope(fields, ministral);
  const double top = fields.number("rope_theta", kMinTheta, kMaxTheta, kDefaultTheta);
  config.theta = rope.number("rope_theta", kMinTheta, kMaxTheta, top);
  if (fields.has("rope_theta") && config.theta != top) {
    fields.bad("rope_theta", str("the same as ", rope.path("rope_theta"), " = ", config.theta));
  }
  config.type = read_type(rope);
  if (config.type == RopeType::yarn) {
    read_hf_yarn(fields, rope, config);
    repair_medium(fields, rope, config, warnings);
  } else if (config.type == RopeType::llama3) {
    config.original_context = original_context(fields, rope);
    read_llama3(rope, config);
  }
  read_hf_query_scaling(rope, ministral, config);
  return config;
}

RopeConfig read_mistral_rope(const Fields& fields) {
  RopeConfig config;
  config.theta = fields.number("rope_theta", kMinTheta, kMaxTheta, kDefaultTheta);
  const Fields scaling = fields.object("llama_4_scaling");
  config.scaling_beta = scaling.number("beta", 0, kMaxScale, 0);
  if (config.scaling_beta != 0) config.scaling_context = original_context(scaling);
  // Meta's word, which leaves the numbers to the version of the code.
  if (fields.flag("use_scaled_rope", false)) {
    fields.unsupported("use_scaled_rope", "false, and llama_3_scaling with its numbers");
  }
  if (fields.has("llama_3_scaling")) {
    if (fields.has("yarn")) fields.bad("llama_3_scaling", "null beside yarn");
    config.type = RopeType::llama3;
    const Fields llama3 = fields.object("llama_3_scaling");
    config.original_context = original_context(llama3);
    read_llama3(llama3, config);
  } else if (fields.has("yarn")) {
    config.type = RopeType::yarn;
    read_mistral_yarn(fields.object("yarn"), config);
  }
  return config;
}

}  // namespace mmengine
