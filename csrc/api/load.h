// The parts of Engine that do not touch a running engine: opening a model under given options,
// describing a checkpoint, and checking a request.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mmengine/types.h"
#include "runtime/plan.h"
#include "runtime/rank.h"

namespace mmengine {

struct LoadedModel {
  ModelInfo info;
  MemoryPlan memory;
  std::string description;
  bool prefix_cache = true;
  int threads = 0;
  std::optional<std::uint64_t> seed;
  int max_waiting = 0;
  std::int64_t max_waiting_tokens = 0;
  Plan plan;
  std::unique_ptr<Rank> rank;
};

// "int8" and "int4" of the codes of groups, else the dtype's own name.
const char* stored_name(DType dtype);

// Of an opened checkpoint, without the list of its tensors. Reads no weight, only the activation
// scales of the linears that share an input: where they differ, a warning says so.
ModelInfo describe(const ModelConfig& config, const Checkpoint& checkpoint,
                   std::vector<std::string> warnings);

// Error{unsupported_model, "draft_head"} for the directory of a draft head.
// threads: those of the backend; 0 = as many as it would take. available_bytes: what may be used
// where the options do not say.
PlanOptions plan_options(const EngineOptions& options, int threads, std::int64_t available_bytes);

LoadedModel load_model(const std::string& directory, const EngineOptions& options);

// Error{request} naming the field, the value and the range.
void validate_request(const Request& request, const ModelInfo& info, std::int64_t max_context);

}  // namespace mmengine
