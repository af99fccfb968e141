#include "model/weights.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include "base/check.h"

namespace mmengine {
namespace {

WeightFormat stored_format(DType dtype) {
  if (dtype == DType::bf16) return WeightFormat::bf16;
  if (dtype == DType::e4m3) return WeightFormat::fp8;
  if (dtype == DType::i8) return WeightFormat::int8;
  if (dtype == DType::u8) return WeightFormat::int4;
  return WeightFormat::f32;
}

// Four bits are too few for what every token passes.
WeightFormat int4_or_table(Role role) {
  const bool table = role == Role::embed || role == Role::lm_head;
  return table ? WeightFormat::int8 : WeightFormat::int4;
}

// An embedding table that is not the head stays BF16 under fp8: it is read one row a token.
WeightFormat choose_format(FormatWish wish, WeightFormat stored, Role role) {
  switch (wish) {
    case FormatWish::stored:
      return stored == WeightFormat::int4 ? int4_or_table(role) : stored;
    case FormatWish::f32:
      return WeightFormat::f32;
    case FormatWish::bf16:
      return WeightFormat::bf16;
    case FormatWish::fp8:
      return role == Role::embed && stored != WeightFormat::fp8 ? WeightFormat::bf16
                                                                : WeightFormat::fp8;
    case FormatWish::int8:
      return WeightFormat::int8;
    case FormatWish::int4:
      return int4_or_table(role);
  }
  return stored;
}

void check_shape(const Checkpoint& checkpoint, const std::string& name, const Shape& expected) {
  const HostTensor tensor = checkpoint.tensor(name);
  const bool same_rank = tensor.shape.rank == expected.rank;
  if (same_rank && tensor.shape.dims == expected.dims) return;
  auto text = [](const Shape& shape) {
    std::string out = "[";
    for (int i = 0; i < shape.rank; ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
  };
  const TensorSource source = checkpoint.source(name);
  throw Error(ErrorCode::model_format, source.text(),
              str("shape does not fit the config, expected ", text(expected), ", got ",
                  text(tensor.shape), "; config and weights are of different models"),
              {.reason = "shape", .file = source.file, .tensor = source.tensor});
}

std::string layer_name(std::int64_t layer, const char* tensor) {
  return str("layers.", layer, ".", tensor);
}

class Planner {
 public:
  Planner(const ModelConfig& config, const StoredWeights& stored, FormatWish wish,
          const BackendTraits& traits, Layout& layout)
      : config_(config), stored_(stored), wish_(wish), traits_(traits), layout_(layout) {}

  void weight(const std::string& name, const std::vector<std::string>& parts,
              const std::vector<std::int64_t>& rows, std::int64_t k, Role role) {
    WeightEntry entry{.name = name, .parts = parts, .rows = rows, .spec = {}, .slice = {}};
    entry.spec.role = role;
    entry.spec.k = k;
    entry.spec.head_dim = config_.head_dim;
    // Parts of one weight share a format: the widest that any of them is stored in.
    WeightFormat stored = WeightFormat::int4;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      entry.spec.n += rows[i];
      stored = std::min(stored, stored_format(stored_.dtype(parts[i])));
    }
    entry.spec.format = choose_format(wish_, stored, role);
    entry.quant = input_quant(entry);
    const std::size_t bytes = traits_.packed_bytes(entry.spec);
    entry.slice = layout_.add(name, DType::u8, {static_cast<std::int64_t>(bytes)});
    if (role != Role::embed) plan_.bytes_per_token += bytes;
    plan_.weights.push_back(std::move(entry));
  }

  void norm(const std::string& name) {
    plan_.norms.push_back({name, layout_.add(name, DType::f32, {config_.hidden_size})});
    plan_.bytes_per_token += static_cast<std::size_t>(config_.hidden_size) * sizeof(float);
  }

  WeightPlan take() { return std::move(plan_); }

 private:
  // Inputs are quantised as the file says where all parts are kept as it has them. A table that
  // rows are read from (a tied head, too) is no linear; a head is one only where the file has a
  // scale for it.
  InputQuant input_quant(const WeightEntry& entry) const {
    if (entry.spec.format != WeightFormat::fp8 || entry.parts[0] == "embed_tokens") {
      return InputQuant::none;
    }
    bool scales = true;
    for (const std::string& part : entry.parts) {
      if (stored_.dtype(part) != DType::e4m3) return InputQuant::none;
      scales = scales && stored_.has_input_scale(part);
    }
    const bool linear = entry.spec.role != Role::lm_head;
    if (config_.activations == ActivationScheme::per_token && linear) return InputQuant::per_token;
    const bool fixed = config_.activations == ActivationScheme::fixed && scales;
    return fixed ? InputQuant::fixed : InputQuant::none;
  }

  const ModelConfig& config_;
  const StoredWeights& stored_;
  FormatWish wish_;
  const BackendTraits& traits_;
  Layout& layout_;
  WeightPlan plan_;
};

// Lets the pages of tensors go while they are being packed: memory holds the packed weights and not
// the file a second time. Pages that are still being read come back.
class Released {
 public:
  Released(const Checkpoint& checkpoint, const std::vector<std::string>& names)
      : checkpoint_(checkpoint), names_(names) {}
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;
  ~Released() { release(); }
  void read(std::size_t bytes) {  // any thread
    constexpr std::size_t kStep = std::size_t{32} << 20;
    const std::size_t before = read_.fetch_add(bytes);
    if (before / kStep != (before + bytes) / kStep) release();
  }

 private:
  void release() const noexcept {
    for (const std::string& name : names_) checkpoint_.release(name);
  }

  const Checkpoint& checkpoint_;
  const std::vector<std::string>& names_;
  std::atomic<std::size_t> read_{0};
};

// Tells the host of the stored bytes that are packed. Only the thread that loads does: the host's
// answer to an interrupt is an exception in its own thread. Seldom: it may have to wait for a lock.
class Progress {
 public:
  Progress(const std::function<void(double)>& tell, std::size_t total_bytes)
      : tell_(tell), total_(total_bytes) {}
  void read(std::size_t bytes) {  // any thread
    const std::size_t done = done_.fetch_add(bytes) + bytes;
    if (!tell_ || std::this_thread::get_id() != loader_) return;
    const auto now = Clock::now();
    if (done == total_ || now - told_at_ < std::chrono::milliseconds(100)) return;
    told_at_ = now;
    tell_(static_cast<double>(done) / static_cast<double>(total_));
  }
  void end() const {
    if (tell_) tell_(1);
  }

 private:
  using Clock = std::chrono::steady_clock;
  const std::function<void(double)>& tell_;
  const std::size_t total_;
  const std::thread::id loader_ = std::this_thread::get_id();
  std::atomic<std::size_t> done_{0};
  Clock::time_point told_at_;  // the loader's; at first long ago
};

// No error: models have rows of tokens that nobody trained.
class Vanished {
 public:
  void add(const std::string& weight, std::int64_t rows) {
    if (rows == 0) return;
    if (weights_ == 0) first_ = weight;
    ++weights_;
    rows_ += rows;
  }
  bool any() const { return weights_ > 0; }
  std::string text() const {
    return str(rows_, " rows of ", weights_, " weights, the first is ", first_,
               ", are too small for the f16 scales of int8 and int4 and become zeros; weight_dtype "
               "fp8 or bf16 holds them");
  }

 private:
  std::int64_t weights_ = 0, rows_ = 0;
  std::string first_;
};

std::size_t stored_bytes(const WeightPlan& plan, const Checkpoint& checkpoint) {
  std::size_t bytes = 0;
  for (const WeightEntry& entry : plan.weights) {
    for (const std::string& part : entry.parts) {
      const HostTensor tensor = checkpoint.tensor(part);
      bytes += static_cast<std::size_t>(tensor.shape.count()) * dtype_bytes(tensor.dtype);
    }
  }
  return bytes;
}

HostTensor tensor_or_none(const Checkpoint& checkpoint, const std::string& name) {
  return checkpoint.has(name) ? checkpoint.tensor(name) : HostTensor{};
}

std::vector<float> read_norm(const Checkpoint& checkpoint, const std::string& name,
                             bool allow_nonfinite) {
  const TensorSource source = checkpoint.source(name);
  const HostTensor tensor = checkpoint.tensor(name);
  if (tensor.dtype != DType::f32 && tensor.dtype != DType::bf16 && tensor.dtype != DType::f16) {
    throw Error(ErrorCode::model_format, source.text(),
                str("dtype of a norm, expected f32, bf16 or f16, got ", dtype_name(tensor.dtype)),
                {.reason = "dtype", .file = source.file, .tensor = source.tensor});
  }
  std::vector<float> gain(static_cast<std::size_t>(tensor.shape.count()));
  for (std::size_t i = 0; i < gain.size(); ++i) {
    gain[i] = read_element(tensor, static_cast<std::int64_t>(i));
    if (!allow_nonfinite && !std::isfinite(gain[i])) {
      throw Error(ErrorCode::model_format, source.text(),
                  str("element ", i, " is not finite; --allow-nonfinite loads it all the same"),
                  {.reason = "non_finite", .file = source.file, .tensor = source.tensor});
    }
  }
  return gain;
}

}  // namespace

StoredWeights stored_weights(const Checkpoint& checkpoint) {
  return {
      checkpoint.has("lm_head"),
      [&checkpoint](const std::string& matrix) { return checkpoint.tensor(matrix).dtype; },
      [&checkpoint](const std::string& matrix) { return checkpoint.has(matrix + ".input_scale"); }};
}

WeightPlan plan_decoder(const ModelConfig& config, const StoredWeights& stored, FormatWish wish,
                        const BackendTraits& traits, Layout& layout) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  const std::int64_t q_rows = config.num_heads * config.head_dim;
  const std::int64_t kv_rows = config.num_kv_heads * config.head_dim;
  Planner plan(config, stored, wish, traits, layout);

  if (stored.head) {
    plan.weight("embed_tokens", {"embed_tokens"}, {config.vocab_size}, hidden, Role::embed);
    plan.weight("lm_head", {"lm_head"}, {config.vocab_size}, hidden, Role::lm_head);
  } else {
    MM_CHECK(config.tied_embeddings, "plan_decoder", "no head, and none that is tied");
    plan.weight("lm_head", {"embed_tokens"}, {config.vocab_size}, hidden, Role::lm_head);
  }
  for (std::int64_t l = 0; l < config.num_layers; ++l) {
    auto name = [l](const char* tensor) { return layer_name(l, tensor); };
    plan.norm(name("input_norm"));
    plan.weight(name("qkv_proj"), {name("q_proj"), name("k_proj"), name("v_proj")},
                {q_rows, kv_rows, kv_rows}, hidden, Role::qkv_proj);
    plan.weight(name("o_proj"), {name("o_proj")}, {hidden}, q_rows, Role::o_proj);
    plan.norm(name("post_norm"));
    plan.weight(name("gate_up_proj"), {name("gate_proj"), name("up_proj")}, {inner, inner}, hidden,
                Role::gate_up_proj);
    plan.weight(name("down_proj"), {name("down_proj")}, {hidden}, inner, Role::down_proj);
  }
  plan.norm("norm");
  return plan.take();
}

void check_model_shapes(const ModelConfig& config, const Checkpoint& checkpoint) {
  Layout sizes_do_not_matter;
  const WeightPlan plan = plan_decoder(config, stored_weights(checkpoint), FormatWish::stored,
                                       traits(BackendKind::ref), sizes_do_not_matter);
  for (const WeightEntry& entry : plan.weights) {
    for (std::size_t i = 0; i < entry.parts.size(); ++i) {
      const DType dtype = checkpoint.tensor(entry.parts[i]).dtype;
      check_shape(checkpoint, entry.parts[i], {entry.rows[i], stored_columns(dtype, entry.spec.k)});
    }
  }
  for (const NormEntry& entry : plan.norms) {
    check_shape(checkpoint, entry.name, {config.hidden_size});
  }
}

Weights::Weights(const WeightPlan& plan, const ModelConfig& config, const Checkpoint& checkpoint,
                 Backend& backend, const Arena& arena, const LoadOptions& options) {
  for (const NormEntry& entry : plan.norms) {
    const std::vector<float> gain = read_norm(checkpoint, entry.name, options.allow_nonfinite);
    const TensorView view = arena[entry.slice];
    backend.upload(view.data, gain.data(), gain.size() * sizeof(float));
    norms_.emplace_back(entry.name, Norm{view, static_cast<float>(config.norm_eps)});
  }
  Progress progress(options.progress, stored_bytes(plan, checkpoint));
  Vanished vanished;
  for (const WeightEntry& entry : plan.weights) {
    HostWeight host;
    host.quant = entry.quant;
    host.allow_nonfinite = options.allow_nonfinite;
    std::vector<std::string> read = entry.parts;
    for (std::size_t i = 0; i < entry.parts.size(); ++i) {
      HostWeight::Part part;
      part.weight = checkpoint.tensor(entry.parts[i]);
      part.source = checkpoint.source(entry.parts[i]);
      const std::string weight_scale = entry.parts[i] + ".weight_scale";
      const std::string weight_min = entry.parts[i] + ".weight_min";
      const std::string input_scale = entry.parts[i] + ".input_scale";
      part.weight_scale = tensor_or_none(checkpoint, weight_scale);
      part.weight_scale_source = checkpoint.source(weight_scale);
      part.weight_min = tensor_or_none(checkpoint, weight_min);
      part.weight_min_source = checkpoint.source(weight_min);
      read.insert(read.end(), {weight_scale, weight_min});
      if (entry.quant == InputQuant::fixed) {
        part.input_scale = checkpoint.tensor(input_scale);
        part.input_scale_source = checkpoint.source(input_scale);
      }
      const bool rotary = entry.spec.role == Role::qkv_proj && i < 2;
      part.rows = rotary ? checkpoint.row_order() : RowOrder::half_split;
      host.parts.push_back(std::move(part));
    }
    std::atomic<std::int64_t> vanished_rows{0};
    host.vanished_rows = &vanished_rows;
    Released released(checkpoint, read);
    host.on_read = [&released, &progress](std::size_t bytes) {
      released.read(bytes);
      progress.read(bytes);
    };
    weights_.emplace_back(entry.name, backend.pack(host, entry.spec, arena[entry.slice]));
    vanished.add(entry.name, vanished_rows);
    progress.read(0);  // other threads may have packed all of it
  }
  progress.end();
  if (vanished.any()) warnings_.push_back(vanished.text());
}

bool Weights::has(const std::string& name) const {
  return std::any_of(weights_.begin(), weights_.end(),
                     [&](const auto& item) { return item.first == name; });
}

const Weight& Weights::weight(const std::string& name) const {
  const auto found = std::find_if(weights_.begin(), weights_.end(),
                                  [&](const auto& item) { return item.first == name; });
  MM_CHECK(found != weights_.end(), "weights", "no weight ", name, " in the plan");
  return found->second;
}

const Norm& Weights::norm(const std::string& name) const {
  const auto found = std::find_if(norms_.begin(), norms_.end(),
                                  [&](const auto& item) { return item.first == name; });
  MM_CHECK(found != norms_.end(), "weights", "no norm ", name, " in the plan");
  return found->second;
}

std::vector<LayerWeights> Weights::layers(std::int64_t count) const {
  std::vector<LayerWeights> layers;
  for (std::int64_t l = 0; l < count; ++l) {
    auto name = [l](const char* tensor) { return layer_name(l, tensor); };
    layers.push_back({norm(name("input_norm")), weight(name("qkv_proj")), weight(name("o_proj")),
                      norm(name("post_norm")), weight(name("gate_up_proj")),
                      weight(name("down_proj"))});
  }
  return layers;
}

}  // namespace mmengine
