// ModelRunner: the device half of a step. A step has two halves, so that a host may look at the
// previous step's ids while a device computes: enqueue (everything up to the logits) and sample.
// Never sees the scheduler or the cache. Engine thread only.
#pragma once

#include <memory>

#include "runtime/rank.h"

namespace mmengine {

class ModelRunner {
 public:
  ModelRunner(const Plan& plan, std::unique_ptr<Rank> rank);
  StepInput step_input() const { return input_; }  // the host image for make_batch
  void enqueue(const Batch& batch);
  void sample(const SampleInput& input);  // of the batch enqueued last
  // The result of that step, with its logits if they are wanted.
  const StepResult& collect(bool with_logits);
  Backend& backend() { return rank_->backend(); }

 private:
  std::unique_ptr<Rank> rank_;
  Arena host_;
  StepInput input_;
  float* logits_ = nullptr;  // host
  std::int64_t* kv_saturated_ = nullptr;
  Batch batch_;
  StepResult result_;
};

}  // namespace mmengine
