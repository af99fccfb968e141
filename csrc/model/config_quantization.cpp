// Which linears are FP8 and how their inputs are quantised, in the words of both layouts
// (model-spec 1.1, 4.3), and the groups of int8 and int4, in those of engine directories.
#include "base/check.h"
#include "model/config_reader.h"

namespace mmengine {
namespace {

// transformers' defaults hold for what is absent: blocks of 128 x 128, dynamic activations.
void read_fp8_block(const Fields& block, ModelConfig& config) {
  if (block.text("quant_method", "none") != "fp8") block.unsupported("quant_method", "'fp8'");
  if (block.has("weight_block_size") || !block.present("weight_block_size")) {
    block.unsupported("weight_block_size", "null: one scale a tensor or a row");
  }
  if (block.text("scale_fmt", "float") != "float") block.unsupported("scale_fmt", "'float'");
  // Names of modules that the model does not have are harmless, so the list decides nothing: the
  // tensors say themselves which of them are FP8.
  const Json& kept = block.value("modules_to_not_convert");
  if (!kept.is_null() && !kept.is_array()) {
    block.bad("modules_to_not_convert", "a list of strings");
  }
  for (const Json& module : kept) {
    if (!module.is_string()) block.bad("modules_to_not_convert", "a list of strings");
  }
  const std::string scheme = block.text("activation_scheme", "dynamic");
  if (scheme != "static" && scheme != "dynamic") {
    block.unsupported("activation_scheme", "'static' and 'dynamic'");
  }
  config.fp8_linears = true;
  if (block.flag("dequantize", false)) return;  // weights alone, in transformers' words
  config.activations = scheme == "static" ? ActivationScheme::fixed : ActivationScheme::per_token;
}

// Inputs are quantised in the groups of the weights; there is no other way to name.
void read_groups_block(const Fields& block, WeightFormat format, ModelConfig& config) {
  if (block.text("qscheme_act", "PER_TOKEN_GROUP") != "PER_TOKEN_GROUP") {
    block.unsupported("qscheme_act", "'PER_TOKEN_GROUP' beside int8_g32 and int4_g32");
  }
  config.group_format = format;
}

}  // namespace

void read_hf_quantization(const Fields& fields, ModelConfig& config) {
  if (fields.has("quantization")) fields.unsupported("quantization", "quantization_config");
  if (fields.has("quantization_config")) {
    read_fp8_block(fields.object("quantization_config"), config);
  }
}

void read_mistral_quantization(const Fields& fields, ModelConfig& config) {
  if (fields.has("quantization") && fields.has("quantization_config")) {
    fields.bad("quantization_config", "null beside quantization");
  }
  if (fields.has("quantization_config")) {
    read_fp8_block(fields.object("quantization_config"), config);
  }
  if (!fields.has("quantization")) return;
  const Fields block = fields.object("quantization");
  const std::string format = block.text("qformat_weight", "");
  if (format == "int8_g32") return read_groups_block(block, WeightFormat::int8, config);
  if (format == "int4_g32") return read_groups_block(block, WeightFormat::int4, config);
  if (format != "fp8_e4m3") {
    block.unsupported("qformat_weight", "'fp8_e4m3', 'int8_g32' and 'int4_g32'");
  }
  config.fp8_linears = true;
  const std::string scheme = block.text("qscheme_act", "TENSOR");
  if (scheme == "TENSOR") {
    config.activations = ActivationScheme::fixed;
  } else if (scheme == "NO_SCALES") {
    config.activations = ActivationScheme::per_token;
  } else if (scheme != "WEIGHT_ONLY") {
    block.unsupported("qscheme_act", "'TENSOR', 'NO_SCALES' and 'WEIGHT_ONLY'");
  }
}

}  // namespace mmengine
