#include "api/load.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"

namespace mmengine {
namespace {

struct Device {
  BackendKind kind;
  int index = 0;  // of cuda
};

Device device_of(const std::string& device) {
  if (device == "auto" || device == "cpu") return {BackendKind::cpu};
  if (device == "ref") return {BackendKind::ref};
  if (device == "cuda") return {BackendKind::cuda};
  const std::string digits = device.rfind("cuda:", 0) == 0 ? device.substr(5) : "";
  if (digits.empty() || digits.size() > 3 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    fail(ErrorCode::usage, "device", "expected auto, cpu, ref, cuda or cuda:0, cuda:1, .., got ",
         printable(device));
  }
  return {BackendKind::cuda, std::stoi(digits)};
}

FormatWish format_wish(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::f32:
      return FormatWish::f32;
    case WeightDtype::bf16:
      return FormatWish::bf16;
    case WeightDtype::fp8:
      return FormatWish::fp8;
    case WeightDtype::int8:
      return FormatWish::int8;
    case WeightDtype::int4:
      return FormatWish::int4;
    case WeightDtype::automatic:
      break;
  }
  return FormatWish::stored;
}

const char* format_name(WeightFormat format) {
  constexpr std::array<const char*, 5> names = {"f32", "bf16", "fp8", "int8", "int4"};
  return names[static_cast<std::size_t>(format)];
}

// The format that most weights have; an embedding table may differ from the rest.
WeightFormat main_format(const WeightPlan& plan) {
  const auto found =
      std::find_if(plan.weights.begin(), plan.weights.end(),
                   [](const WeightEntry& entry) { return entry.spec.role == Role::qkv_proj; });
  return found->spec.format;
}

}  // namespace

PlanOptions plan_options(const EngineOptions& options, int threads, std::int64_t available_bytes) {
  PlanOptions plan;
  plan.backend = device_of(options.device).kind;
  plan.threads = threads;
  plan.weights = format_wish(options.weight_dtype);
  plan.kv_dtype = options.kv_dtype;
  plan.max_context = options.max_context;
  plan.max_batch = options.max_batch;
  plan.prefill_chunk = options.prefill_chunk;
  plan.kv_blocks = options.kv_blocks;
  plan.memory_bytes = options.memory_bytes > 0 ? options.memory_bytes : available_bytes;
  return plan;
}

LoadedModel load_model(const std::string& directory, const EngineOptions& options) {
  BackendOptions backend_options;
  const Device device = device_of(options.device);
  backend_options.kind = device.kind;
  backend_options.device = device.index;
  backend_options.threads = options.threads;
  backend_options.instruction_set = options.instruction_set;
  if (options.threads < 0 || options.threads > 1024) {
    fail(ErrorCode::usage, "threads", "expected 1 to 1024, or 0 for all, got ", options.threads);
  }
  constexpr int kMaxWaiting = 16384;  // requests
  if (options.max_waiting < 0 || options.max_waiting_tokens < 0) {
    fail(ErrorCode::usage, options.max_waiting < 0 ? "max_waiting" : "max_waiting_tokens",
         "expected 1 or more, or 0 for the default, got ",
         options.max_waiting < 0 ? options.max_waiting : options.max_waiting_tokens);
  }
  std::unique_ptr<Backend> backend = make_backend(backend_options);
  std::vector<std::string> warnings;
  const Checkpoint checkpoint = Checkpoint::open(directory, read_config(directory, warnings));
  const ModelConfig& config = checkpoint.config();
  if (checkpoint.kind() == CheckpointKind::draft_head) {
    const std::string file = checkpoint.source("norm").file;
    throw Error(ErrorCode::unsupported_model, file,
                "is an EAGLE draft head, not a model; pass its directory as the draft of the model "
                "that it was trained for",
                {.reason = "draft_head", .file = file});
  }
  const PlanOptions options_of_plan =
      plan_options(options, backend->threads(), backend->available_bytes());

  LoadedModel model;
  model.plan = make_plan(config, stored_weights(checkpoint), options_of_plan);
  check_model_shapes(config, checkpoint);
  check_fits(model.plan);
  model.info = describe(config, checkpoint, std::move(warnings));
  model.info.weight_dtype = format_name(main_format(model.plan.decoder));
  model.memory = describe(model.plan, checkpoint);
  model.description = backend->describe();
  model.threads = backend->threads();
  model.seed = options.seed;
  model.prefix_cache = options.prefix_cache;
  model.max_waiting = options.max_waiting > 0 ? options.max_waiting : kMaxWaiting;
  model.max_waiting_tokens = options.max_waiting_tokens;
  model.rank = std::make_unique<Rank>(model.plan, config, checkpoint, std::move(backend),
                                      LoadOptions{options.allow_nonfinite, options.progress});
  for (const std::string& warning : model.rank->warnings()) {
    model.info.warnings.push_back(str(printable(directory), ": ", warning));
  }
  return model;
}

}  // namespace mmengine
