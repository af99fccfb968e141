// Sampler: SamplingParams and token history of the sequences of a step -> SampleInput, a pure
// function of host state. Engine thread only.
#pragma once

#include <vector>

#include "backend/buffer.h"
#include "runtime/sequence.h"

namespace mmengine {

struct SampleOutputSlices {
  static SampleOutputSlices plan(const StepLimits& limits, Layout& layout);
  SampleOutput bind(const Arena& arena) const;
  Slice id, logprob, top_id, top_logprob;
};

// The lists behind one SampleInput; reused step after step.
struct SampleLists {
  std::vector<SampleRow> rows;
  std::vector<std::int32_t> ban;
  std::vector<LogitBias> bias;
  std::vector<TokenCount> count;
  std::vector<std::uint32_t> mask;
};

// One entry per logits row of the schedule, in order; the constraints of sequences that sample are
// prepared. The input points into `lists`.
SampleInput make_sample_input(const Schedule& schedule, SampleLists& lists);

}  // namespace mmengine
