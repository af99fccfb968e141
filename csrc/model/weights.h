// Weights: which packed weights a model has, where each will lie, and, later, the same list packed.
// One list serves plan and loader. Immutable after load.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace mmengine {

struct LayerWeights {
  Norm input_norm;
  Weight qkv_proj, o_proj;
  Norm post_norm;
  Weight gate_up_proj, down_proj;
};

// The format weights are kept in; `stored` = as the checkpoint has them (f16 becomes f32, exact).
// Under int4 embedding and head are int8.
enum class FormatWish : std::uint8_t { stored, f32, bf16, fp8, int8, int4 };

// What the files have, as far as sizes depend on it: from their headers, or from a config alone.
struct StoredWeights {
  bool head = false;  // a matrix of its own, not tied
  std::function<DType(const std::string& matrix)> dtype;
  std::function<bool(const std::string& matrix)> has_input_scale;
};

StoredWeights stored_weights(const Checkpoint& checkpoint);  // which must outlive it

struct WeightEntry {
  std::string name;                // "layers.3.qkv_proj"
  std::vector<std::string> parts;  // "layers.3.q_proj", ...
  std::vector<std::int64_t> rows;  // of each part
  WeightSpec spec;
  InputQuant quant = InputQuant::none;
  Slice slice;
};

struct NormEntry {
  std::string name;
  Slice slice;
};

struct WeightPlan {
  std::vector<WeightEntry> weights;
  std::vector<NormEntry> norms;
  std::size_t bytes_per_token = 0;  // packed bytes that one generated token reads
};

// A tied head is one weight, "lm_head", that also serves as embedding table.
WeightPlan plan_decoder(const ModelConfig& config, const StoredWeights& stored, FormatWish wish,
                        const BackendTraits& traits, Layout& layout);

// Every tensor has the shape that the config gives it, else Error{model_format, "shape"}.
void check_model_shapes(const ModelConfig& config, const Checkpoint& checkpoint);

struct LoadOptions {
  bool allow_nonfinite = false;
  // At most ten times a second, and at the end. May be empty; may throw to stop.
  std::function<void(double fraction)> progress;
};

class Weights {
 public:
  // Reads every tensor once, converts and packs it into the arena.
  Weights(const WeightPlan& plan, const ModelConfig& config, const Checkpoint& checkpoint,
          Backend& backend, const Arena& arena, const LoadOptions& options);
  bool has(const std::string& name) const;
  const Weight& weight(const std::string& name) const;
  const Norm& norm(const std::string& name) const;
  std::vector<LayerWeights> layers(std::int64_t count) const;
  // What the host should hear of: weights that int8 and int4 lose.
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  std::vector<std::pair<std::string, Weight>> weights_;
  std::vector<std::pair<std::string, Norm>> norms_;
  std::vector<std::string> warnings_;
};

}  // namespace mmengine
