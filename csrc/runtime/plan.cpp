#include "runtime/plan.h"

#include <algorithm>

#include "base/check.h"

namespace mmengine {
namespace {

constexpr int kDefaultBatch = 16, kMaxBatch = 4096;
constexpr int kPromptLogitsRows = 64;  // rows of a step whose logits a caller may ask for

int in_range(std::int64_t value, std::int64_t most, const char* option) {
  if (value < 1 || value > most) {
    fail(ErrorCode::usage, option, "expected 1 to ", most, ", got ", value);
  }
  return static_cast<int>(value);
}

DType resolve_kv(KvDtype wish, const WeightPlan& weights) {
  if (wish == KvDtype::f32) return DType::f32;
  if (wish == KvDtype::bf16) return DType::bf16;
  if (wish == KvDtype::fp8) return DType::e4m3;
  const bool any_f32 =
      std::any_of(weights.weights.begin(), weights.weights.end(),
                  [](const WeightEntry& entry) { return entry.spec.format == WeightFormat::f32; });
  return any_f32 ? DType::f32 : DType::bf16;
}

void plan_steps(Plan& plan, const RopeConfig& rope, const BackendTraits& traits, Layout& device) {
  const StepLimits& limits = plan.limits;
  const std::int64_t pairs = plan.shape.head_dim / 2;
  plan.layer = LayerSlices::plan(plan.shape, limits.rows, device);
  plan.step = StepSlices::plan(limits, device);
  plan.step_input = StepInputSlices::plan(limits, device);
  plan.sample_output = SampleOutputSlices::plan(limits, device);
  plan.rope_cos = device.add("rope_cos", DType::f32, {limits.context_tokens, pairs});
  plan.rope_sin = device.add("rope_sin", DType::f32, {limits.context_tokens, pairs});
  if (rope.scales_queries()) {
    plan.query_scale = device.add("query_scale", DType::f32, {limits.context_tokens});
  }
  plan.logits = device.add("logits", DType::f32, {limits.logits_rows, plan.shape.vocab_size});
  const std::size_t scratch = traits.scratch_bytes(plan.shape, limits, plan.options.threads);
  plan.scratch = device.add("scratch", DType::u8, {static_cast<std::int64_t>(scratch)});
}

void set_limits(Plan& plan, int batch, std::int64_t context, const BackendTraits& traits) {
  const std::int64_t wish = plan.options.prefill_chunk, block_tokens = plan.kv.block_tokens;
  const std::int64_t chunk = wish == 0 ? traits.prefill_chunk() : wish;
  plan.prefill_chunk = static_cast<int>(
      std::min<std::int64_t>(in_range(chunk, std::int64_t{1} << 24, "prefill_chunk"), context));
  plan.limits.rows = plan.prefill_chunk + batch;
  plan.limits.sequences = batch;
  plan.limits.logits_rows = batch + kPromptLogitsRows;
  plan.limits.context_tokens = static_cast<int>(context);
  plan.limits.max_blocks = static_cast<int>((context + block_tokens - 1) / block_tokens);
}

std::size_t workspace_bytes(Plan plan, const RopeConfig& rope, const BackendTraits& traits) {
  Layout device;
  plan_steps(plan, rope, traits, device);
  return device.bytes();
}

}  // namespace

Plan make_plan(const ModelConfig& config, const StoredWeights& stored, const PlanOptions& options) {
  const BackendTraits& backend = traits(options.backend);
  Plan plan;
  plan.options = options;
  plan.shape = {config.hidden_size, config.intermediate_size, config.vocab_size, config.num_layers,
                config.num_heads,   config.num_kv_heads,      config.head_dim};
  plan.decoder = plan_decoder(config, stored, options.weights, backend, plan.device);
  plan.kv = {config.num_layers, config.num_kv_heads, config.head_dim, backend.block_tokens(),
             resolve_kv(options.kv_dtype, plan.decoder)};
  plan.kv_layer_bytes = backend.kv_block_bytes(plan.kv);

  const std::size_t weights = plan.weights_end = plan.device.bytes();
  const auto memory = static_cast<std::size_t>(options.memory_bytes);
  const auto misfit = [&plan](const std::string& what, std::size_t needed) {
    if (!plan.misfit) plan.misfit = {what, needed};
  };
  if (weights > memory) misfit("the weights do not fit", weights);

  // Tokens first: the pool holds one sequence of the longest context, and max_batch of them if that
  // is not more than its share of what the weights leave.
  const int batch =
      options.max_batch == 0 ? kDefaultBatch : in_range(options.max_batch, kMaxBatch, "max_batch");
  const std::int64_t block_tokens = plan.kv.block_tokens;
  const std::size_t block_bytes = plan.kv_layer_bytes * static_cast<std::size_t>(config.num_layers);
  const std::size_t left = memory - std::min(weights, memory);
  std::int64_t context = config.max_context;
  if (options.max_context != 0) {
    context = in_range(options.max_context, config.max_context, "max_context");
  }
  set_limits(plan, batch, context, backend);
  plan.kv_share = backend.kv_share(workspace_bytes(plan, config.rope, backend));
  std::int64_t blocks = options.kv_blocks;
  if (blocks == 0) {
    const std::int64_t one = (context + block_tokens - 1) / block_tokens;
    const auto affordable = static_cast<std::int64_t>(plan.kv_share.of(left) / block_bytes);
    blocks = std::min(one * batch, std::max<std::int64_t>(affordable, 1));
    if (blocks < one && options.max_context != 0) {
      misfit(str("the KV cache of max_context = ", context, " tokens does not fit into ",
                 plan.kv_share.parts == 4 ? "a quarter of " : "", "the memory beside the weights"),
             weights + plan.kv_share.needed(static_cast<std::size_t>(one) * block_bytes));
    }
  }
  plan.num_blocks = in_range(blocks, std::int64_t{1} << 30, "kv_blocks");
  if (options.max_context != 0 && options.kv_blocks != 0 && context > blocks * block_tokens) {
    fail(ErrorCode::usage, "max_context", "a pool of ", blocks, " blocks of ", block_tokens,
         " tokens cannot hold ", context, " tokens");
  }
  set_limits(plan, batch, std::min(context, blocks * block_tokens), backend);

  plan_steps(plan, config.rope, backend, plan.device);
  const auto pool = static_cast<std::int64_t>(plan.kv_layer_bytes) * (plan.num_blocks + 1);
  plan.kv_blocks = plan.device.add("kv_blocks", DType::u8, {config.num_layers, pool});
  plan.kv_saturated = plan.device.add("kv_saturated", DType::i64, {1});
  plan.kv_saturated_host = plan.host.add("kv_saturated_host", DType::i64, {1});
  plan.step_input_host = StepInputSlices::plan(plan.limits, plan.host);
  plan.sample_output_host = SampleOutputSlices::plan(plan.limits, plan.host);
  plan.logits_host =
      plan.host.add("logits_host", DType::f32, {plan.limits.logits_rows, plan.shape.vocab_size});

  const std::size_t total = plan.device.bytes() + plan.host.bytes();
  if (total > memory) misfit("weights, KV cache and workspace do not fit", total);
  return plan;
}

KvDtype kv_dtype(const Plan& plan) {
  switch (plan.kv.dtype) {
    case DType::f32:
      return KvDtype::f32;
    case DType::e4m3:
      return KvDtype::fp8;
    default:
      return KvDtype::bf16;
  }
}

void check_fits(const Plan& plan) {
  if (!plan.misfit) return;
  const auto gib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  const auto needed = static_cast<std::int64_t>(plan.misfit->needed);
  const std::int64_t available = plan.options.memory_bytes;
  std::ostringstream text;
  text.precision(3);
  text << plan.misfit->what << ": needs " << gib(needed) << " GiB, available are " << gib(available)
       << " GiB; free memory, or lower max_context, max_batch or the width of the weights";
  throw Error(ErrorCode::resource, "memory", text.str(),
              {.reason = "memory", .needed = needed, .available = available});
}

MemoryPlan describe(const Plan& plan, const Checkpoint& checkpoint) {
  MemoryPlan out;
  for (const Layout* layout : {&plan.device, &plan.host}) {
    for (const Layout::Region& region : layout->regions()) {
      out.regions.push_back({region.name, static_cast<std::int64_t>(region.bytes)});
    }
  }
  out.weights_bytes = static_cast<std::int64_t>(checkpoint.bytes());
  out.resident_bytes = static_cast<std::int64_t>(plan.device.bytes() + plan.host.bytes());
  out.bytes_per_token = static_cast<std::int64_t>(plan.decoder.bytes_per_token);
  for (const WeightEntry& entry : plan.decoder.weights) {
    const std::int64_t flops = 2 * entry.spec.n * entry.spec.k;
    if (entry.spec.role == Role::lm_head) {
      out.flops_per_logits_row += flops;
    } else if (entry.spec.role != Role::embed) {
      out.flops_per_token += flops;
    }
  }
  // q k and weights times v, each head_dim products and sums for every query head.
  out.flops_per_position = 4 * plan.shape.num_heads * plan.shape.head_dim * plan.shape.num_layers;
  const std::int64_t values = 2 * plan.kv.num_layers * plan.kv.num_kv_heads * plan.kv.head_dim;
  out.kv_bytes_per_token_f32 = values * 4;
  out.kv_bytes_per_token_bf16 = values * 2;
  out.kv_bytes_per_token_fp8 = values;
  out.kv_blocks = plan.num_blocks;
  out.kv_block_tokens = plan.kv.block_tokens;
  out.max_context = plan.limits.context_tokens;
  out.kv_dtype = kv_dtype(plan);
  return out;
}

}  // namespace mmengine
