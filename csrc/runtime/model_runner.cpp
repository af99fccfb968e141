#include "runtime/model_runner.h"

#include <utility>

namespace mmengine {

ModelRunner::ModelRunner(const Plan& plan, std::unique_ptr<Rank> rank)
    : rank_(std::move(rank)),
      host_(rank_->backend().allocate_images(plan.host.bytes())),
      input_(plan.step_input_host.bind(host_)),
      logits_(host_[plan.logits_host].as<float>()),
      kv_saturated_(host_[plan.kv_saturated_host].as<std::int64_t>()) {
  result_.out = plan.sample_output_host.bind(host_);
}

void ModelRunner::enqueue(const Batch& batch) {
  batch_ = batch;
  rank_->forward(batch_);
}

void ModelRunner::sample(const SampleInput& input) { rank_->sample(batch_, input, result_.out); }

const StepResult& ModelRunner::collect(bool with_logits) {
  result_.cu_logits = batch_.input.cu_logits;
  result_.logits = with_logits ? logits_ : nullptr;
  rank_->download_kv_saturated(kv_saturated_);
  if (with_logits) rank_->download_logits(batch_, logits_);
  rank_->backend().wait();
  result_.kv_saturated = *kv_saturated_;
  return result_;
}

}  // namespace mmengine
