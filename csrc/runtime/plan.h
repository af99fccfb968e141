// Plan: every byte of one device, before any weight is read. It sits in runtime because it counts
// what all layers below allocate; each of them describes its own share to a Layout, and Rank
// allocates that very list.
#pragma once

#include <optional>
#include <string>

#include "model/decoder.h"
#include "model/weights.h"
#include "runtime/batch.h"
#include "runtime/sampler.h"

namespace mmengine {

struct PlanOptions {
  BackendKind backend = BackendKind::cpu;
  int threads = 1;
  FormatWish weights = FormatWish::stored;
  KvDtype kv_dtype = KvDtype::automatic;
  std::int64_t max_context = 0;  // 0 = as many tokens as fit, at most the model's
  int max_batch = 0, prefill_chunk = 0;
  std::int64_t kv_blocks = 0;     // 0 = at most the backend's kv_share
  std::int64_t memory_bytes = 0;  // what may be used
};

struct Misfit {  // what does not fit, and the bytes that it needs with all that stands beside it
  std::string what;
  std::size_t needed = 0;
};

struct Plan {
  PlanOptions options;
  std::optional<Misfit> misfit;  // the first; sizes go on with one block of KV at least
  ModelShape shape;
  StepLimits limits;  // context_tokens: the longest sequence, prompt and answer
  int prefill_chunk = 0;
  KvSpec kv;
  KvShare kv_share;
  int num_blocks = 0;  // without the scrap block
  Layout device, host;

  WeightPlan decoder;
  std::size_t weights_end = 0;  // bytes of the device that it takes, from 0 on
  LayerSlices layer;
  StepSlices step;
  StepInputSlices step_input, step_input_host;
  SampleOutputSlices sample_output, sample_output_host;
  Slice rope_cos, rope_sin, query_scale, logits, logits_host, scratch, kv_blocks;
  Slice kv_saturated, kv_saturated_host;  // one count
  std::size_t kv_layer_bytes = 0;         // of one block in one layer
};

// Error{usage} for an option out of range.
Plan make_plan(const ModelConfig& config, const StoredWeights& stored, const PlanOptions& options);
KvDtype kv_dtype(const Plan& plan);  // resolved
// Error{resource} with needed and available bytes.
void check_fits(const Plan& plan);
MemoryPlan describe(const Plan& plan, const Checkpoint& checkpoint);  // for the public API

}  // namespace mmengine
