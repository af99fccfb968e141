#include "runtime/sequence.h"

#include <algorithm>

namespace mmengine {

void Sequence::count_prompt() {
  if (sampling.repetition_penalty == 1) return;  // the other penalties are of the answer alone
  for (int i = 0; i < num_prompt_tokens; ++i)
    counts.add_prompt(tokens[static_cast<std::size_t>(i)]);
}

FinishReason Sequence::append(std::int32_t token, int max_context) {
  tokens.push_back(token);
  if (sampling.repetition_penalty != 1 || sampling.frequency_penalty != 0 ||
      sampling.presence_penalty != 0) {
    counts.add_generated(token);
  }
  const bool ending = std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
  if (ending && num_generated() > sampling.min_tokens) return FinishReason::stop;
  if (sampling.max_tokens >= 0 && num_generated() >= sampling.max_tokens) {
    return FinishReason::length;
  }
  if (static_cast<int>(tokens.size()) >= max_context) return FinishReason::length;
  return FinishReason::running;
}

}  // namespace mmengine
