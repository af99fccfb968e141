// Rank: one device's share of the engine: backend, weights, KV pool, slots. It computes Batches and
// knows nothing of requests. Engine thread only.
#pragma once

#include <memory>
#include <vector>

#include "runtime/graph_cache.h"
#include "runtime/plan.h"

namespace mmengine {

class Rank {
 public:
  // Allocates the plan's memory and loads the weights into it.
  Rank(const Plan& plan, const ModelConfig& config, const Checkpoint& checkpoint,
       std::unique_ptr<Backend> backend, const LoadOptions& options);

  void forward(const Batch& batch);  // up to the logits
  // What follows writes to host memory, which may be read after the backend's wait.
  // Samples and accepts the rows of the last forward.
  void sample(const Batch& batch, const SampleInput& input, const SampleOutput& out);
  void download_logits(const Batch& batch, float* host);  // of the last forward, [E, vocab]
  void download_kv_saturated(std::int64_t* host);         // of all steps so far
  Backend& backend() { return *backend_; }
  const std::vector<std::string>& warnings() const { return weights_->warnings(); }

 private:
  StepInput upload(const Batch& batch);
  void set_shapes(const Batch& batch);  // of step_
  void pass();                          // of step_, up to the logits

  std::unique_ptr<Backend> backend_;
  Arena device_;
  std::unique_ptr<Weights> weights_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<GraphCache> graphs_;  // of pass
  Step step_;  // fixed addresses; launch shapes of what is put on the device next
  Slots slots_;
  StepInput input_;
  SampleOutput output_;
  TensorView logits_;
  std::int64_t* kv_saturated_;
};

}  // namespace mmengine
