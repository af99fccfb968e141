// Plan: every byte of one device, before any weight is read. It sits in runtime because it counts
// what all layers below allocate; each of them describes its own share to a Layout, and Rank
// allocates that very list.
#pragma once

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
  std::int64_t kv_blocks = 0;     // 0 = at most a quarter of what the weights leave
  std::int64_t memory_bytes = 0;  // what may be used
};

struct Plan {
  PlanOptions options;
  ModelShape shape;
  StepLimits limits;  // context_tokens: the longest sequence, prompt and answer
  int prefill_chunk = 0;
  KvSpec kv;
  int num_blocks = 0;  // without the scrap block
  Layout device, host;

  WeightPlan decoder;
  LayerSlices layer;
  StepSlices step;
  StepInputSlices step_input, step_input_host;
  SampleOutputSlices sample_output, sample_output_host;
  Slice rope_cos, rope_sin, query_scale, logits, logits_host, scratch, kv_blocks;
  std::size_t kv_layer_bytes = 0;  // of one block in one layer
};

// Error{resource} with needed and available bytes; Error{usage} for an option out of range.
Plan make_plan(const ModelConfig& config, const Checkpoint& checkpoint, const PlanOptions& options);
MemoryPlan describe(const Plan& plan, const Checkpoint& checkpoint);  // for the public API

}  // namespace mmengine
