// census and forecast_cpu: the plan of a model that need not be there. The CPU's sums repeat what
// make_plan adds up from a checkpoint's headers, on the same slices and traits; a test holds the
// two together.
#include "mmengine/forecast.h"

#include <algorithm>

#include "base/check.h"
#include "base/memory.h"
#include "model/census.h"
#include "model/decoder.h"
#include "runtime/batch.h"
#include "runtime/sampler.h"

namespace mmengine {
namespace {

constexpr int kDefaultBatch = 16, kDefaultChunk = 256, kPromptLogitsRows = 64;

struct Source {  // what a directory says of itself
  ModelConfig config;
  Conversion conversion;
  std::vector<std::string> warnings;
};

Source read_source(const std::string& directory) {
  Source source;
  source.config = read_config(directory, source.warnings);
  source.conversion = read_conversion(Directory(directory));
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

WeightFormat packed_format(WeightDtype wish, DType stored, Role role) {
  switch (wish) {
    case WeightDtype::f32:
      return WeightFormat::f32;
    case WeightDtype::bf16:
      return WeightFormat::bf16;
    case WeightDtype::fp8:
      return role == Role::embed && stored != DType::e4m3 ? WeightFormat::bf16 : WeightFormat::fp8;
    case WeightDtype::automatic:
      break;
  }
  if (stored == DType::bf16) return WeightFormat::bf16;
  return stored == DType::e4m3 ? WeightFormat::fp8 : WeightFormat::f32;
}

class CpuSums {
 public:
  CpuSums(const Source& source, const EngineOptions& options)
      : config_(source.config),
        options_(options),
        groups_(decoder_groups(source.config, source.conversion)) {}

  // Weights as the backend packs them; returns their bytes without what aligns the regions.
  std::int64_t weights() {
    const std::int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
    const std::int64_t q_rows = config_.num_heads * config_.head_dim;
    const std::int64_t qkv_rows = q_rows + 2 * config_.num_kv_heads * config_.head_dim;
    const DType table = dtype_of(groups_, Matter::embedding);
    const DType linear = dtype_of(groups_, Matter::linear);
    if (!config_.tied_embeddings) {
      weight(Role::embed, config_.vocab_size, hidden, table);
    }
    weight(Role::lm_head, config_.vocab_size, hidden, table);
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      norm();
      weight(Role::qkv_proj, qkv_rows, hidden, linear);
      weight(Role::o_proj, hidden, q_rows, linear);
      norm();
      weight(Role::gate_up_proj, 2 * inner, hidden, linear);
      weight(Role::down_proj, hidden, inner, linear);
    }
    norm();
    return weight_bytes_;
  }

  // What a step needs, the cache apart.
  void step(const StepLimits& limits) {
    const ModelShape shape{config_.hidden_size, config_.intermediate_size, config_.vocab_size,
                           config_.num_layers,  config_.num_heads,         config_.num_kv_heads,
                           config_.head_dim};
    LayerSlices::plan(shape, limits.rows, device_);
    StepSlices::plan(limits, device_);
    for (Layout* layout : {&device_, &host_}) {
      StepInputSlices::plan(limits, *layout);
      SampleOutputSlices::plan(limits, *layout);
      layout->add("logits", DType::f32, {limits.logits_rows, config_.vocab_size});
    }
    for (const char* table : {"rope_cos", "rope_sin"}) {
      device_.add(table, DType::f32, {limits.context_tokens, config_.head_dim / 2});
    }
    if (config_.rope.scales_queries()) {
      device_.add("query_scale", DType::f32, {limits.context_tokens});
    }
    const std::size_t scratch = backend_.scratch_bytes(shape, limits, options_.threads);
    device_.add("scratch", DType::u8, {static_cast<std::int64_t>(scratch)});
  }

  std::int64_t bytes() const { return static_cast<std::int64_t>(device_.bytes() + host_.bytes()); }

  std::int64_t pool(std::int64_t layer_bytes, std::int64_t blocks) {
    device_.add("kv_blocks", DType::u8, {config_.num_layers, layer_bytes * (blocks + 1)});
    return config_.num_layers * layer_bytes * (blocks + 1);
  }

  bool any_f32() const { return any_f32_; }
  const BackendTraits& backend() const { return backend_; }

 private:
  void weight(Role role, std::int64_t n, std::int64_t k, DType stored) {
    const WeightFormat format = packed_format(options_.weight_dtype, stored, role);
    any_f32_ |= format == WeightFormat::f32;
    const auto bytes =
        static_cast<std::int64_t>(backend_.packed_bytes({role, n, k, format, config_.head_dim}));
    device_.add("weight", DType::u8, {bytes});
    weight_bytes_ += bytes;
  }
  void norm() {
    device_.add("norm", DType::f32, {config_.hidden_size});
    weight_bytes_ += config_.hidden_size * static_cast<std::int64_t>(sizeof(float));
  }

  const ModelConfig& config_;
  const EngineOptions& options_;
  const BackendTraits& backend_ = traits(BackendKind::cpu);
  std::vector<TensorGroup> groups_;
  Layout device_, host_;
  std::int64_t weight_bytes_ = 0;
  bool any_f32_ = false;
};

std::int64_t vision_bytes(const Source& source, bool text_only) {
  std::int64_t bytes = 0;
  for (const ComponentSum& sum :
       sum_groups(decoder_groups(source.config, source.conversion), GpuFormat::stored, text_only)) {
    if (sum.component == Component::vision_tower || sum.component == Component::projector) {
      bytes += sum.resident_bytes;
    }
  }
  return bytes;
}

int in_range(std::int64_t value, std::int64_t most, const char* option) {
  if (value < 1 || value > most) {
    fail(ErrorCode::usage, option, "expected 1 to ", most, ", got ", value);
  }
  return static_cast<int>(value);
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
  out.weight_dtype = dtype_name(dtype_of(groups, Matter::linear));
  out.warnings = std::move(source.warnings);
  return out;
}

CpuForecast forecast_cpu(const std::string& directory, const EngineOptions& options,
                         bool text_only) {
  const Source source = read_source(directory);
  const ModelConfig& config = source.config;
  CpuSums sums(source, options);
  CpuForecast out;
  out.available_bytes = options.memory_bytes > 0 ? options.memory_bytes : available_memory_bytes();
  const std::int64_t vision = vision_bytes(source, text_only);
  out.resident_bytes = sums.weights() + vision;
  const bool f32 = options.kv_dtype == KvDtype::f32 ||
                   (options.kv_dtype == KvDtype::automatic && sums.any_f32());
  out.kv_dtype = f32 ? KvDtype::f32 : KvDtype::bf16;

  const std::int64_t weights = sums.bytes() + vision;
  const int block_tokens = sums.backend().block_tokens();
  const auto layer_bytes = static_cast<std::int64_t>(
      sums.backend().kv_block_bytes({config.num_layers, config.num_kv_heads, config.head_dim,
                                     block_tokens, f32 ? DType::f32 : DType::bf16}));
  const std::int64_t block_bytes = layer_bytes * config.num_layers;
  const int batch =
      options.max_batch == 0 ? kDefaultBatch : in_range(options.max_batch, 4096, "max_batch");
  std::int64_t context = config.max_context;
  if (options.max_context != 0) {
    context = in_range(options.max_context, config.max_context, "max_context");
  }
  // As in make_plan: without a word of the caller the cache takes a quarter of what is left.
  const std::int64_t one = (context + block_tokens - 1) / block_tokens;
  const std::int64_t affordable =
      std::max<std::int64_t>(out.available_bytes - weights, 0) / 4 / block_bytes;
  out.fits = options.max_context == 0 || options.kv_blocks != 0 || affordable >= one;
  out.kv_blocks = options.kv_blocks != 0
                      ? in_range(options.kv_blocks, std::int64_t{1} << 30, "kv_blocks")
                      : std::min(one * batch, std::max<std::int64_t>(affordable, 1));
  out.kv_block_tokens = block_tokens;
  context = std::min(context, out.kv_blocks * block_tokens);
  out.max_context = context;

  const std::int64_t chunk = options.prefill_chunk == 0 ? kDefaultChunk : options.prefill_chunk;
  StepLimits limits;
  limits.rows = static_cast<int>(std::min<std::int64_t>(
                    in_range(chunk, std::int64_t{1} << 24, "prefill_chunk"), context)) +
                batch;
  limits.sequences = batch;
  limits.logits_rows = batch + kPromptLogitsRows;
  limits.context_tokens = static_cast<int>(context);
  limits.max_blocks = static_cast<int>((context + block_tokens - 1) / block_tokens);
  sums.step(limits);
  out.kv_bytes = sums.pool(layer_bytes, out.kv_blocks);
  const std::int64_t total = sums.bytes() + vision;
  out.workspace_bytes = total - out.resident_bytes - out.kv_bytes;
  out.fits = out.fits && total <= out.available_bytes;
  const std::int64_t step = out.workspace_bytes + (one + 1) * block_bytes;
  const std::int64_t quarter = options.kv_blocks != 0 ? 0 : 4 * one * block_bytes;
  out.needed_bytes = weights + std::max(step, quarter);
  return out;
}

}  // namespace mmengine
