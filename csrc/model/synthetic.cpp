#include "model/synthetic.h"

#include <cstring>

#include "base/check.h"
#include "model/tensor_names.h"
#include "model/weights.h"

namespace mmengine {
namespace {

// Inputs have a standard deviation near 1: 448 / 64 of them, and the products of MLPs, whose tails
// are heavier, twice as many, are not clamped.
constexpr float kInputScaleOf1 = 0x1p-6f, kInputScaleOfProducts = 0x1p-5f;

template <class T>
std::vector<std::byte> copies(T value, std::int64_t count) {
  const std::vector<T> values(static_cast<std::size_t>(count), value);
  std::vector<std::byte> data(values.size() * sizeof(T));
  std::memcpy(data.data(), values.data(), data.size());
  return data;
}

std::vector<std::byte> ones(DType dtype, std::int64_t count) {
  if (dtype == DType::f32) return copies(1.0f, count);
  return copies(dtype == DType::f16 ? f32_to_f16(1.0f) : f32_to_bf16(1.0f), count);
}

DType linear_dtype(const ModelConfig& config) {
  if (config.group_format) {
    return *config.group_format == WeightFormat::int4 ? DType::u8 : DType::i8;
  }
  return config.fp8_linears ? DType::e4m3 : config.dtype;
}

void add_scales(const ModelConfig& config, const std::string& linear, Role role, std::int64_t k,
                std::vector<SyntheticTensor>& tensors) {
  const auto scalar = [&](std::string_view suffix, float value) {
    tensors.push_back({str(linear, suffix), DType::bf16, {}, copies(f32_to_bf16(value), 1)});
  };
  scalar(kWeightScale, synthetic_fp8_scale(k));
  if (config.activations != ActivationScheme::fixed) return;
  scalar(kInputScale, role == Role::down_proj ? kInputScaleOfProducts : kInputScaleOf1);
}

// The packed weights' own list says which matrices there are.
void add_text(const ModelConfig& config, std::vector<SyntheticTensor>& tensors) {
  const DType table = config.group_format ? DType::i8 : config.dtype;
  const DType linear = linear_dtype(config);
  const StoredWeights stored{
      !config.tied_embeddings,
      [=](const std::string& name) { return name.starts_with("layers.") ? linear : table; },
      [](const std::string&) { return false; }};
  Layout sizes_do_not_matter;
  const WeightPlan plan = plan_decoder(config, stored, FormatWish::stored, traits(BackendKind::ref),
                                       sizes_do_not_matter);
  for (const WeightEntry& entry : plan.weights) {
    const std::int64_t k = entry.spec.k;
    for (std::size_t i = 0; i < entry.parts.size(); ++i) {
      const std::string& name = entry.parts[i];
      const DType dtype = stored.dtype(name);
      tensors.push_back({name, dtype, {entry.rows[i], stored_columns(dtype, k)}, {}});
      if (dtype == DType::e4m3) add_scales(config, name, entry.spec.role, k, tensors);
      const std::vector<std::int64_t> groups{entry.rows[i], num_groups(k)};
      if (config.group_format) tensors.push_back({str(name, kWeightScale), DType::f16, groups, {}});
      if (dtype == DType::u8) tensors.push_back({str(name, kWeightMin), DType::f16, groups, {}});
    }
  }
  const DType norm = config.group_format ? DType::f32 : config.dtype;
  for (const NormEntry& entry : plan.norms) {
    tensors.push_back({entry.name, norm, {config.hidden_size}, ones(norm, config.hidden_size)});
  }
}

// Nothing reads it yet; it is there to be counted.
std::vector<std::int64_t> vision_shape(const ModelConfig& config, std::string_view name) {
  const VisionConfig& v = *config.vision;
  const std::int64_t hidden = v.hidden_size, inner = v.intermediate_size;
  const std::int64_t heads = v.num_heads * v.head_dim, width = config.hidden_size;
  const std::string_view stem = name.substr(name.rfind('.') + 1);
  if (stem == "patch_conv") return {hidden, v.num_channels, v.patch_size, v.patch_size};
  if (stem == "q_proj" || stem == "k_proj" || stem == "v_proj") return {heads, hidden};
  if (stem == "o_proj") return {hidden, heads};
  if (stem == "gate_proj" || stem == "up_proj") return {inner, hidden};
  if (stem == "down_proj") return {hidden, inner};
  if (stem == "merging_layer") {
    return {hidden, hidden * v.spatial_merge_size * v.spatial_merge_size};
  }
  if (stem == "linear_1") return {width, hidden};
  if (stem == "linear_2") return {width, width};
  return {hidden};  // norms
}

}  // namespace

std::vector<SyntheticTensor> synthetic_tensors(const ModelConfig& config) {
  std::vector<SyntheticTensor> tensors;
  add_text(config, tensors);
  if (!config.vision) return tensors;
  for (const std::string& name : vision_names(*config.vision)) {
    tensors.push_back({name, config.dtype, vision_shape(config, name), {}});
  }
  return tensors;
}

}  // namespace mmengine
