#include "runtime/sequence.h"

#include <algorithm>

namespace mmengine {

FinishReason Sequence::append(std::int32_t token, int max_context) {
  tokens.push_back(token);
  const bool ending = std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
  if (ending && num_generated() > sampling.min_tokens) return FinishReason::stop;
  if (sampling.max_tokens >= 0 && num_generated() >= sampling.max_tokens) {
    return FinishReason::length;
  }
  if (static_cast<int>(tokens.size()) >= max_context) return FinishReason::length;
  return FinishReason::running;
}

}  // namespace mmengine
