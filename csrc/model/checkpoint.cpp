// Opening a checkpoint: files, headers, names, completeness. All of it before a weight is read.
#include "model/checkpoint.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "model/safetensors.h"
#include "model/shards.h"
#include "model/synthetic.h"
#include "model/tensor_names.h"
#include "model/tensor_rules.h"

namespace mmengine {
namespace {

struct Entry {
  std::string file;  // as shown in messages
  TensorInfo info;
  const std::byte* data = nullptr;
  std::optional<std::uint64_t> seed = std::nullopt;  // instead of data
};

std::string join(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) out += (out.empty() ? "" : ", ") + item;
  return out;
}

constexpr std::array<std::string_view, 3> kScales{kWeightScale, kWeightMin, kInputScale};

// The end of a scale's or minimum's name; "" of a weight's.
std::string_view scale_suffix(std::string_view name) {
  const auto found = std::find_if(kScales.begin(), kScales.end(),
                                  [&](std::string_view suffix) { return name.ends_with(suffix); });
  return found == kScales.end() ? std::string_view() : *found;
}

bool is_group_codes(DType dtype) { return dtype == DType::i8 || dtype == DType::u8; }

HostTensor view(const Entry& entry) {
  constexpr std::size_t kMaxRank = std::tuple_size_v<decltype(Shape::dims)>;
  HostTensor tensor;
  tensor.data = entry.data;
  tensor.dtype = entry.info.dtype;
  tensor.seed = entry.seed;
  bool fits = entry.info.rank <= kMaxRank;
  for (std::size_t i = 0; fits && i < entry.info.rank; ++i) {
    fits = entry.info.dims[i] <= std::uint64_t{std::numeric_limits<std::int64_t>::max()};
    tensor.shape.dims[i] = static_cast<std::int64_t>(entry.info.dims[i]);
  }
  if (!fits) {
    throw Error(ErrorCode::model_format, entry.file,
                str("tensor ", printable(entry.info.name),
                    " has no shape of a weight, expected rank <= ", kMaxRank, ", got rank ",
                    entry.info.rank),
                {.reason = "shape", .file = entry.file, .tensor = entry.info.name});
  }
  tensor.shape.rank = static_cast<int>(entry.info.rank);
  return tensor;
}

}  // namespace

struct Checkpoint::Impl {
  std::string directory;
  CheckpointLayout layout = CheckpointLayout::hugging_face;
  ModelConfig config;
  CheckpointKind kind = CheckpointKind::model;
  std::vector<MappedFile> files;
  std::vector<SyntheticTensor> synthetic;
  std::unordered_map<std::string, Entry> entries;  // by our name
  std::vector<std::string> warnings;
  std::vector<std::string> unknown, beyond;  // beyond: of layers that the config has not
  std::int64_t kv_scales = 0;
  std::uint64_t bytes = 0;

  void add_file(const Directory& from, const std::string& name, Shards& shards);
  void add_tensor(const std::string& file, const TensorInfo& info, const std::byte* data);
  void add_synthetic();
  void check_assigned(const Shards& shards, const Directory& from) const;
  void add_unnamed(const TensorInfo& info);
  void check_depth() const;
  void take_scales_at_their_word();
  bool has_groups(const std::string& name, const TensorInfo& weight) const;
  std::vector<std::string> missing_scales() const;
  std::vector<std::string> missing_vision();
  void check_complete();
  TensorUse use_of(const std::string& name) const;
  void check_scales() const;
  void warn_unused();
};

void Checkpoint::Impl::add_file(const Directory& from, const std::string& name, Shards& shards) {
  MappedFile mapped = from.map(name);
  const std::string file = from.display(name);
  for (const TensorInfo& info : parse_safetensors(mapped.data(), mapped.size(), file)) {
    if (shards.indexed) {
      const auto assigned = shards.assigned.find(info.name);
      if (assigned == shards.assigned.end()) {
        add_unnamed(info);
        continue;
      }
      if (assigned->second != name) continue;  // the index prefers another file's
      shards.assigned.erase(assigned);
    }
    add_tensor(file, info, mapped.data() + info.offset);
  }
  mapped.advise(0, mapped.size(), MappedFile::Advice::sequential);
  files.push_back(std::move(mapped));
}

void Checkpoint::Impl::add_tensor(const std::string& file, const TensorInfo& info,
                                  const std::byte* data) {
  const std::string name = our_name(layout, info.name, config);
  if (name.empty()) return add_unnamed(info);
  const auto [position, added] = entries.emplace(name, Entry{file, info, data});
  if (!added) {
    const Entry& first = position->second;
    throw Error(ErrorCode::model_format, file,
                str("tensor ", printable(info.name), " is already there as ",
                    printable(first.info.name), " in ", first.file, ", expected it once"),
                {.reason = "duplicate_tensor", .file = file, .tensor = info.name});
  }
  bytes += info.bytes;
}

// Named as in Mistral's files, whose order of rotary rows they have.
void Checkpoint::Impl::add_synthetic() {
  layout = CheckpointLayout::mistral;
  synthetic = synthetic_tensors(config);
  for (const SyntheticTensor& made : synthetic) {
    Entry entry{directory, {}, nullptr};
    entry.info.name = source_name(layout, made.name);
    entry.info.dtype = made.dtype;
    entry.info.rank = made.shape.size();
    entry.info.bytes = dtype_bytes(made.dtype);
    for (std::size_t i = 0; i < made.shape.size(); ++i) {
      entry.info.dims[i] = static_cast<std::uint64_t>(made.shape[i]);
      entry.info.bytes = checked_mul(entry.info.bytes, entry.info.dims[i], "synthetic");
    }
    if (made.data.empty()) {
      entry.seed = synthetic_seed(made.name);
    } else {
      entry.data = made.data.data();
    }
    bytes = checked_add(bytes, entry.info.bytes, "synthetic");
    entries.emplace(made.name, std::move(entry));
  }
}

void Checkpoint::Impl::check_assigned(const Shards& shards, const Directory& from) const {
  if (shards.assigned.empty()) return;  // every entry was met, or there is no index
  std::vector<std::string> absent;
  for (const auto& [tensor, file] : shards.assigned) {
    absent.push_back(str(printable(tensor), " in ", printable(file)));
  }
  std::sort(absent.begin(), absent.end());
  const std::string where = from.display(shards.index);
  throw Error(
      ErrorCode::model_format, where,
      str("names tensors that their files lack: ", join(absent), "; download them again"),
      {.reason = "missing_tensor", .file = where, .tensor = shards.assigned.begin()->first});
}

void Checkpoint::Impl::add_unnamed(const TensorInfo& info) {
  switch (purpose_of_unnamed(info.name)) {
    case Unnamed::unused:
      return;
    case Unnamed::kv_scale:
      ++kv_scales;
      return;
    case Unnamed::unknown:
      break;
  }
  ModelConfig deeper = config;
  deeper.num_layers = std::numeric_limits<std::int32_t>::max();
  if (deeper.vision) deeper.vision->num_layers = deeper.num_layers;
  const bool layer = !our_name(layout, info.name, deeper).empty();
  (layer ? beyond : unknown).push_back(info.name);
}

// Half a model would answer, and nobody would know why it is bad.
void Checkpoint::Impl::check_depth() const {
  if (beyond.empty()) return;
  const std::string& first = *std::min_element(beyond.begin(), beyond.end());
  throw Error(ErrorCode::model_format, directory,
              str("the files hold ", beyond.size(), " tensors of layers beyond the config's ",
                  config.num_layers, ", the first is ", printable(first),
                  "; config and weights are of different models"),
              {.reason = "layers", .file = directory, .tensor = first});
}

// Weights in e4m3 whose activation scales are there, under a config that tells of neither.
void Checkpoint::Impl::take_scales_at_their_word() {
  if (config.fp8_linears || !entries.contains(str("layers.0.q_proj", kInputScale))) return;
  config.fp8_linears = true;
  config.activations = ActivationScheme::fixed;
  warnings.push_back(str(directory,
                         ": the config does not tell of quantisation, the files have activation "
                         "scales: inputs are quantised by them"));
}

// Codes in a file whose config tells of none are somebody else's.
bool Checkpoint::Impl::has_groups(const std::string& name, const TensorInfo& weight) const {
  return config.group_format && is_group_codes(weight.dtype) && may_have_groups(name);
}

// Under the names that the weights beside them have in their files.
std::vector<std::string> Checkpoint::Impl::missing_scales() const {
  std::vector<std::string> missing;
  for (const auto& [name, entry] : entries) {
    if (!scale_suffix(name).empty()) continue;
    const std::string& own = entry.info.name;
    if (has_groups(name, entry.info)) {
      for (std::string_view suffix : {kWeightScale, kWeightMin}) {
        const bool needed = suffix == kWeightScale || entry.info.dtype == DType::u8;
        if (!needed || entries.contains(str(name, suffix))) continue;
        missing.push_back(str(own.substr(0, own.rfind('.')), suffix));
      }
    }
    if (entry.info.dtype != DType::e4m3) continue;
    const bool linear = name.starts_with("layers.") || name == kDraftLinear;
    for (std::string_view suffix : {kWeightScale, kInputScale}) {
      const bool needed =
          suffix == kWeightScale || (linear && config.activations == ActivationScheme::fixed);
      if (!needed || entries.contains(str(name, suffix))) continue;
      const std::string weight = source_name(layout, name);
      const std::string scale = source_name(layout, str(name, suffix));
      const std::size_t stem = weight.size() - std::string_view(".weight").size();
      missing.push_back(own.substr(0, own.rfind('.')) + scale.substr(stem));
    }
  }
  return missing;
}

std::vector<std::string> Checkpoint::Impl::missing_vision() {
  std::vector<std::string> missing;
  if (!config.vision) return missing;
  const std::vector<std::string> names = vision_names(*config.vision);
  for (const std::string& name : names) {
    if (!entries.contains(name)) missing.push_back(source_name(layout, name));
  }
  if (missing.size() < names.size()) return missing;
  warnings.push_back(str(directory, ": the config has a vision tower, the files have none"));
  return {};
}

void Checkpoint::Impl::check_complete() {
  if (entries.contains(kDraftLinear) && !entries.contains("embed_tokens")) {
    kind = CheckpointKind::draft_head;
  }
  std::vector<std::string> missing = missing_scales();
  for (const std::string& name : missing_vision()) missing.push_back(name);
  const bool draft = kind == CheckpointKind::draft_head;
  for (const std::string& name : required_names(config.num_layers, draft)) {
    if (!entries.contains(name)) missing.push_back(source_name(layout, name));
  }
  if (!draft && !config.tied_embeddings && !entries.contains("lm_head")) {
    missing.push_back(source_name(layout, "lm_head"));
  }
  if (missing.empty()) return;
  std::sort(missing.begin(), missing.end());
  throw Error(ErrorCode::model_format, directory,
              str("missing ", missing.size(), " of the tensors that the config calls for: ",
                  join(missing), "; download the checkpoint again"),
              {.reason = "missing_tensor", .file = directory, .tensor = missing.front()});
}

TensorUse Checkpoint::Impl::use_of(const std::string& name) const {
  const bool groups = config.group_format && may_have_groups(name);
  const std::string_view suffix = scale_suffix(name);
  if (suffix.empty()) {
    if (!groups) return TensorUse::weight;
    // Table and head are int8 beside int4, too.
    const bool int4 = *config.group_format == WeightFormat::int4 && name.starts_with("layers.");
    return int4 ? TensorUse::int4_weight : TensorUse::int8_weight;
  }
  const auto weight = entries.find(name.substr(0, name.size() - suffix.size()));
  const bool of_groups = weight != entries.end() && suffix != kInputScale &&
                         has_groups(weight->first, weight->second.info);
  return of_groups ? TensorUse::group_scale : TensorUse::scale;
}

void Checkpoint::Impl::check_scales() const {
  for (const auto& [name, entry] : entries) {
    check_dtype(entry.file, entry.info, use_of(name));
    const TensorInfo& weight = entry.info;
    for (std::string_view suffix : kScales) {
      const auto scale = entries.find(str(name, suffix));
      if (scale == entries.end()) continue;
      check_scaled(scale->second.file, scale->second.info, suffix, weight);
      if (is_group_codes(weight.dtype)) {
        check_group_part(scale->second.file, scale->second.info, suffix, weight);
        continue;
      }
      const std::uint64_t rows = suffix == kWeightScale && weight.rank > 0 ? weight.dims[0] : 1;
      check_scale_shape(scale->second.file, scale->second.info, rows);
    }
  }
}

void Checkpoint::Impl::warn_unused() {
  if (kv_scales > 0) {
    warnings.push_back(str(directory, ": ", kv_scales,
                           " scales of a KV cache in FP8 are not used, the cache is kept wider"));
  }
  if (unknown.empty()) return;
  std::sort(unknown.begin(), unknown.end());
  warnings.push_back(str(directory, ": ", unknown.size(),
                         " tensors of an unknown purpose are ignored, the first is ",
                         printable(unknown.front())));
  unknown.clear();
}

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint Checkpoint::open(const std::string& path, const ModelConfig& config) {
  auto impl = std::make_unique<Impl>();
  if (is_synthetic(path)) {
    impl->directory = printable(path);
    impl->config = config;
    impl->add_synthetic();
    return Checkpoint(std::move(impl));
  }
  const Directory directory(path);
  impl->directory = directory.display();
  impl->layout = find_layout(directory);
  impl->config = config;
  Shards shards = find_shards(directory, impl->layout);
  if (impl->layout == CheckpointLayout::mistral) check_manifest(directory, shards.files);
  for (const std::string& file : shards.files) impl->add_file(directory, file, shards);
  impl->check_assigned(shards, directory);
  impl->check_depth();
  impl->take_scales_at_their_word();
  impl->check_complete();
  impl->check_scales();
  impl->warn_unused();
  return Checkpoint(std::move(impl));
}

const ModelConfig& Checkpoint::config() const { return impl_->config; }

CheckpointKind Checkpoint::kind() const { return impl_->kind; }

bool Checkpoint::has(const std::string& name) const { return impl_->entries.contains(name); }

HostTensor Checkpoint::tensor(const std::string& name) const {
  const auto found = impl_->entries.find(name);
  if (found != impl_->entries.end()) return view(found->second);
  const std::string source = source_name(impl_->layout, name);
  throw Error(ErrorCode::model_format, impl_->directory,
              str("tensor ", printable(source), " is missing"),
              {.reason = "missing_tensor", .file = impl_->directory, .tensor = source});
}

void Checkpoint::release(const std::string& name) const noexcept {
  const auto found = impl_->entries.find(name);
  if (found == impl_->entries.end()) return;
  const Entry& entry = found->second;
  for (const MappedFile& file : impl_->files) {
    if (entry.data < file.data() || entry.data >= file.data() + file.size()) continue;
    const auto offset = static_cast<std::uint64_t>(entry.data - file.data());
    file.advise(offset, entry.info.bytes, MappedFile::Advice::done);
  }
}

TensorSource Checkpoint::source(const std::string& name) const {
  const auto found = impl_->entries.find(name);
  if (found == impl_->entries.end()) return {impl_->directory, source_name(impl_->layout, name)};
  return {found->second.file, found->second.info.name};
}

RowOrder Checkpoint::row_order() const {
  return impl_->layout == CheckpointLayout::mistral ? RowOrder::interleaved : RowOrder::half_split;
}

std::uint64_t Checkpoint::bytes() const { return impl_->bytes; }

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : impl_->entries) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

std::string Checkpoint::layout() const {
  if (!impl_->synthetic.empty()) return "synthetic";
  return impl_->layout == CheckpointLayout::mistral ? "mistral" : "hf";
}

const std::vector<std::string>& Checkpoint::warnings() const { return impl_->warnings; }

}  // namespace mmengine
