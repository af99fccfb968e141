// census and forecast_cpu: the plan of a model that need not be there.
#include "mmengine/forecast.h"

#include <algorithm>

#include "api/load.h"
#include "base/check.h"
#include "base/memory.h"
#include "model/census.h"
#include "model/synthetic.h"

namespace mmengine {
namespace {

struct Source {  // what a directory says of itself
  ModelConfig config;
  Conversion conversion;
  std::vector<std::string> warnings;
};

Source read_source(const std::string& directory) {
  Source source;
  source.config = read_config(directory, source.warnings);
  if (!is_synthetic(directory)) source.conversion = read_conversion(Directory(directory));
  return source;
}

GpuFormat gpu_format(const std::string& name) {
  if (name == "auto") return GpuFormat::stored;
  if (name == "bf16") return GpuFormat::bf16;
  if (name == "fp8") return GpuFormat::fp8;
  if (name == "int4") return GpuFormat::int4;
  fail(ErrorCode::usage, "weight_dtype", "expected auto, bf16, fp8 or int4, got ", printable(name));
}

DType dtype_of(const std::vector<TensorGroup>& groups, Matter matter) {
  const auto found = std::find_if(groups.begin(), groups.end(),
                                  [&](const TensorGroup& group) { return group.matter == matter; });
  return found == groups.end() ? DType::bf16 : found->dtype;
}

// As the checkpoint's headers would say it.
StoredWeights stored_weights(const Source& source) {
  const std::vector<TensorGroup> groups = decoder_groups(source.config, source.conversion);
  const DType table = dtype_of(groups, Matter::embedding), head = dtype_of(groups, Matter::head);
  const DType linear = dtype_of(groups, Matter::linear);
  const bool fixed = source.config.activations == ActivationScheme::fixed;
  return {!source.config.tied_embeddings,
          [=](const std::string& matrix) {
            return matrix == "embed_tokens" ? table : matrix == "lm_head" ? head : linear;
          },
          [=](const std::string& matrix) { return fixed && matrix.starts_with("layers."); }};
}

}  // namespace

Census census(const std::string& directory, const std::string& weight_dtype, bool text_only,
              bool draft) {
  const GpuFormat format = gpu_format(weight_dtype);
  Source source = read_source(directory);
  const ModelConfig& config = source.config;
  const std::vector<TensorGroup> groups =
      draft ? draft_groups(config) : decoder_groups(config, source.conversion);
  Census out;
  for (const ComponentSum& sum : sum_groups(groups, format, text_only)) {
    out.components.push_back({component_name(sum.component), sum.tensors, sum.parameters, sum.bytes,
                              sum.resident_bytes, sum.whole_bytes});
  }
  out.hidden_size = config.hidden_size;
  out.intermediate_size = config.intermediate_size;
  out.vocab_size = config.vocab_size;
  out.num_layers = config.num_layers;
  out.num_heads = config.num_heads;
  out.num_kv_heads = config.num_kv_heads;
  out.head_dim = config.head_dim;
  out.max_context = config.max_context;
  out.rope_type = rope_type_name(config.rope.type);
  out.rope_theta = config.rope.theta;
  out.rope_factor = config.rope.factor;
  out.rope_original_context = config.rope.original_context;
  out.rope_attention_factor = config.rope.attention_factor;
  if (config.vision && !draft) {
    const std::int64_t side = config.vision->image_size / config.vision->patch_size;
    out.vision_hidden_size = config.vision->hidden_size;
    out.vision_intermediate_size = config.vision->intermediate_size;
    out.vision_num_heads = config.vision->num_heads;
    out.vision_patches = side * side;
  }
  out.weight_dtype = stored_name(dtype_of(groups, Matter::linear));
  out.warnings = std::move(source.warnings);
  return out;
}

CpuForecast forecast_cpu(const std::string& directory, const EngineOptions& options) {
  const Source source = read_source(directory);
  const PlanOptions wish = plan_options(options, options.threads, available_memory_bytes());
  CpuForecast out;
  out.available_bytes = wish.memory_bytes;
  const Plan plan = make_plan(source.config, stored_weights(source), wish);
  const auto signed_size = [](std::size_t bytes) { return static_cast<std::int64_t>(bytes); };

  std::int64_t weights = 0;
  for (const WeightEntry& entry : plan.decoder.weights) weights += entry.slice.shape.count();
  for (const NormEntry& entry : plan.decoder.norms) {
    weights += entry.slice.shape.count() * static_cast<std::int64_t>(sizeof(float));
  }
  const std::int64_t block_bytes = signed_size(plan.kv_layer_bytes) * plan.kv.num_layers;
  out.fits = !plan.misfit;
  out.resident_bytes = weights;
  out.kv_bytes = block_bytes * (plan.num_blocks + 1);
  out.workspace_bytes =
      signed_size(plan.device.bytes() + plan.host.bytes()) - weights - out.kv_bytes;
  out.kv_blocks = plan.num_blocks;
  out.kv_block_tokens = plan.kv.block_tokens;
  out.max_context = plan.limits.context_tokens;
  out.kv_dtype = kv_dtype(plan);

  // What one sequence of the whole context would need: its blocks, for which the backend's share of
  // what the weights leave is enough, unless their number is given.
  const std::int64_t context =
      options.max_context != 0 ? options.max_context : source.config.max_context;
  const std::int64_t one =
      (context + plan.kv.block_tokens - 1) / plan.kv.block_tokens * block_bytes;
  const std::int64_t beside = out.workspace_bytes + one + block_bytes;
  const std::int64_t shared = signed_size(plan.kv_share.needed(static_cast<std::size_t>(one)));
  out.needed_bytes =
      signed_size(plan.weights_end) + std::max(beside, options.kv_blocks != 0 ? 0 : shared);
  return out;
}

}  // namespace mmengine
