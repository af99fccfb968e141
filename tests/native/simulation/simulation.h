// The real Scheduler, KvCache, PrefixIndex, Batch and Sampler around a fake device, step by step
// under a random workload, with every rule checked after each part of a step.
#pragma once

#include "simulation/report.h"

namespace mmengine::simulation {

// One workload; ends at the first part of a step that breaks a rule.
Report simulate(std::uint64_t seed, bool tracing);

struct Outcome {
  Statistics statistics;
  std::vector<Violation> violations;
  std::vector<std::string> trace;
};

// Workloads [first, first + count), each of them twice, to compare; at most `most` violations.
Outcome simulate(std::uint64_t first, int count, bool tracing, std::size_t most);

}  // namespace mmengine::simulation
