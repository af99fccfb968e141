#include "model/census.h"

#include <algorithm>

#include "backend/backend.h"
#include "model/fields.h"

namespace mmengine {
namespace {

constexpr std::uint64_t kMaxManifestBytes = 4 << 20;
constexpr std::int64_t kInt4GroupColumns = 128, kF16Bytes = 2, kF32Bytes = 4, kBf16Bytes = 2;

class Groups {
 public:
  // The config's word, where it has one, holds also without a manifest.
  Groups(const ModelConfig& config, const Conversion& made)
      : Groups(config.group_format ? of_groups(*config.group_format) : made, config) {}

  void norm(Component component, std::int64_t count, std::int64_t columns) {
    groups_.push_back({component, count, 1, columns, norms_, Matter::fixed, false});
  }
  void table(Component component, Matter matter, std::int64_t rows, std::int64_t columns) {
    // A table that is not the head, too, is read a row at a time and stays wide.
    const bool wide = row_scales_ && matter == Matter::embedding && !tied_;
    groups_.push_back({component, 1, rows, columns, wide ? DType::bf16 : plain_, matter, true});
    if (plain_ == DType::i8) return group_scales(1, rows, columns, plain_);
    if (row_scales_ && !wide) scales(1, rows, DType::f32);
  }
  // Columns and rows of linears are both divided, by turns; their scalar scales are not.
  void linear(Component component, std::int64_t count, std::int64_t rows, std::int64_t columns) {
    groups_.push_back({component, count, rows, columns, linears_, Matter::linear, true});
    if (linears_ == DType::i8 || linears_ == DType::u8) {
      return group_scales(count, rows, columns, linears_);
    }
    if (linears_ != DType::e4m3) return;
    const bool shipped = activations_ != ActivationScheme::none;  // a conversion keeps their scales
    if (row_scales_ && !shipped) return scales(count, rows, DType::f32);
    scales(count * (activations_ == ActivationScheme::fixed ? 2 : 1), 1,
           row_scales_ ? DType::f32 : DType::bf16);
  }
  // Of the vision part, which no conversion touches.
  void vision(Component component, std::int64_t count, std::int64_t rows, std::int64_t columns,
              DType dtype, bool divided) {
    groups_.push_back({component, count, rows, columns, dtype, Matter::fixed, divided});
  }
  std::vector<TensorGroup> take() { return std::move(groups_); }

 private:
  Groups(const Conversion& conversion, const ModelConfig& config)
      : plain_(conversion.value_or(config.dtype)),
        norms_(conversion ? DType::f32 : config.dtype),
        row_scales_(conversion == DType::e4m3),
        linears_(config.fp8_linears || row_scales_ ? DType::e4m3 : plain_),
        tied_(config.tied_embeddings),
        activations_(config.activations) {
    if (plain_ == DType::u8) plain_ = DType::i8;  // tables beside int4
  }
  static Conversion of_groups(WeightFormat format) {
    return format == WeightFormat::int4 ? DType::u8 : DType::i8;
  }

  void group_scales(std::int64_t count, std::int64_t rows, std::int64_t columns, DType codes) {
    const std::int64_t each = codes == DType::u8 ? 2 : 1;  // scale and minimum
    groups_.push_back({Component::scales, count * each, rows, num_groups(columns), DType::f16,
                       Matter::fixed, true});
  }
  void scales(std::int64_t count, std::int64_t rows, DType dtype) {
    groups_.push_back({Component::scales, count, rows, 1, dtype, Matter::fixed, rows > 1});
  }

  DType plain_, norms_;
  bool row_scales_;
  DType linears_;
  bool tied_;
  ActivationScheme activations_;
  std::vector<TensorGroup> groups_;
};

void add_layers(Groups& groups, const ModelConfig& config) {
  const std::int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const std::int64_t q_rows = config.num_heads * config.head_dim;
  const std::int64_t kv_rows = config.num_kv_heads * config.head_dim;
  const std::int64_t layers = config.num_layers;
  groups.linear(Component::attention, layers, q_rows, hidden);       // q
  groups.linear(Component::attention, 2 * layers, kv_rows, hidden);  // k, v
  groups.linear(Component::attention, layers, hidden, q_rows);       // o
  groups.linear(Component::mlp, 2 * layers, inner, hidden);          // gate, up
  groups.linear(Component::mlp, layers, hidden, inner);              // down
  groups.norm(Component::norms, 2 * layers + 1, hidden);
}

void add_vision(Groups& groups, const ModelConfig& config) {
  const VisionConfig& vision = *config.vision;
  const std::int64_t hidden = vision.hidden_size, inner = vision.intermediate_size;
  const std::int64_t heads = vision.num_heads * vision.head_dim, layers = vision.num_layers;
  const std::int64_t pixels = vision.num_channels * vision.patch_size * vision.patch_size;
  const std::int64_t merged = hidden * vision.spatial_merge_size * vision.spatial_merge_size;
  const DType dtype = config.dtype;
  constexpr Component kTower = Component::vision_tower, kProjector = Component::projector;
  groups.vision(kTower, 1, hidden, pixels, dtype, false);          // patch_conv
  groups.vision(kTower, 1 + 2 * layers, 1, hidden, dtype, false);  // ln_pre, norms
  groups.vision(kTower, 3 * layers, heads, hidden, dtype, true);   // q, k, v
  groups.vision(kTower, layers, hidden, heads, dtype, true);       // o
  groups.vision(kTower, 2 * layers, inner, hidden, dtype, true);   // gate, up
  groups.vision(kTower, layers, hidden, inner, dtype, true);       // down
  groups.vision(kProjector, 1, 1, hidden, dtype, false);           // norm
  groups.vision(kProjector, 1, hidden, merged, dtype, true);       // patch merger
  groups.vision(kProjector, 1, config.hidden_size, hidden, dtype, true);
  groups.vision(kProjector, 1, config.hidden_size, config.hidden_size, dtype, true);
}

std::int64_t stored_bytes(const TensorGroup& group) {
  return group.count * group.rows * stored_columns(group.dtype, group.columns) *
         static_cast<std::int64_t>(dtype_bytes(group.dtype));
}

// Bytes of a linear, embedding or head in another format than the stored one.
std::int64_t made_bytes(const TensorGroup& group, GpuFormat format) {
  const std::int64_t rows = group.count * group.rows, columns = group.columns;
  if (format == GpuFormat::fp8 && group.matter != Matter::embedding) {
    return rows * (columns + kF32Bytes);
  }
  if (format == GpuFormat::int4 && group.matter == Matter::linear) {
    const std::int64_t scales = (columns + kInt4GroupColumns - 1) / kInt4GroupColumns;
    return rows * ((columns + 1) / 2 + scales * kF16Bytes);
  }
  return rows * columns * kBf16Bytes;
}

// Stored scales stay with the linears that they belong to.
std::int64_t resident_bytes(const TensorGroup& group, GpuFormat format, bool fp8_linears) {
  if (group.component == Component::scales) {
    const bool kept = format == GpuFormat::stored || (format == GpuFormat::fp8 && fp8_linears);
    return kept ? stored_bytes(group) : 0;
  }
  const bool kept = group.matter == Matter::fixed || format == GpuFormat::stored ||
                    (format == GpuFormat::fp8 && group.dtype == DType::e4m3);
  return kept ? stored_bytes(group) : made_bytes(group, format);
}

}  // namespace

const char* component_name(Component component) {
  constexpr std::array<const char*, kNumComponents> names = {
      "embedding", "attention",    "mlp",       "norms",       "head",
      "scales",    "vision_tower", "projector", "eagle_linear"};
  return names[static_cast<std::size_t>(component)];
}

Conversion read_conversion(const Directory& directory) {
  if (find_layout(directory) != CheckpointLayout::mistral) return std::nullopt;
  const Json params = read_json_file(directory, "params.json", kMaxManifestBytes);
  if (!params.contains("mmengine") || !directory.has("manifest.json")) return std::nullopt;
  const Json json = read_json_file(directory, "manifest.json", kMaxManifestBytes);
  const Fields manifest(json, directory.display("manifest.json"));
  const std::string dtype = manifest.text("weight_dtype", "");
  if (dtype == "f32") return DType::f32;
  if (dtype == "bf16") return DType::bf16;
  if (dtype == "fp8") return DType::e4m3;
  if (dtype == "int8") return DType::i8;
  if (dtype == "int4") return DType::u8;
  manifest.bad("weight_dtype", "'bf16', 'f32', 'fp8', 'int8' or 'int4'");
}

std::vector<TensorGroup> decoder_groups(const ModelConfig& config, const Conversion& conversion) {
  Groups groups(config, conversion);
  groups.table(Component::embedding, Matter::embedding, config.vocab_size, config.hidden_size);
  add_layers(groups, config);
  if (!config.tied_embeddings) {
    groups.table(Component::head, Matter::head, config.vocab_size, config.hidden_size);
  }
  if (config.vision) add_vision(groups, config);
  return groups.take();
}

std::vector<TensorGroup> draft_groups(const ModelConfig& config) {
  Groups groups(config, std::nullopt);
  groups.linear(Component::eagle_linear, 1, config.hidden_size, 2 * config.hidden_size);
  add_layers(groups, config);
  return groups.take();
}

std::vector<ComponentSum> sum_groups(const std::vector<TensorGroup>& groups, GpuFormat format,
                                     bool text_only) {
  std::array<ComponentSum, kNumComponents> sums;
  const bool fp8_linears = std::any_of(groups.begin(), groups.end(), [](const TensorGroup& group) {
    return group.matter == Matter::linear && group.dtype == DType::e4m3;
  });
  for (const TensorGroup& group : groups) {
    ComponentSum& sum = sums[static_cast<std::size_t>(group.component)];
    sum.component = group.component;
    sum.tensors += group.count;
    sum.bytes += stored_bytes(group);
    if (group.component != Component::scales) {
      sum.parameters += group.count * group.rows * group.columns;
    }
    const bool vision =
        group.component == Component::vision_tower || group.component == Component::projector;
    if (vision && text_only) continue;
    const std::int64_t resident = resident_bytes(group, format, fp8_linears);
    sum.resident_bytes += resident;
    if (!group.divided) sum.whole_bytes += resident;
  }
  std::vector<ComponentSum> present;
  std::copy_if(sums.begin(), sums.end(), std::back_inserter(present),
               [](const ComponentSum& sum) { return sum.tensors > 0; });
  return present;
}

}  // namespace mmengine
