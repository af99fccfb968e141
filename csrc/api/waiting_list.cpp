#include "api/waiting_list.h"

#include "base/check.h"

namespace mmengine {

void WaitingList::check(std::int64_t prompt_tokens) const {
  const auto refuse = [](std::int64_t number, const char* what) {
    throw Error(ErrorCode::overloaded, "engine",
                str(number, " ", what, " are waiting already; try again later"),
                {.reason = "queue_full", .retry_after = 1.0});
  };
  const auto requests = static_cast<std::int64_t>(prompt_tokens_.size());
  if (requests >= max_requests_) refuse(requests, "requests");
  // A prompt that is longer than the queue may wait alone.
  if (max_tokens_ > 0 && tokens_ > 0 && tokens_ + prompt_tokens > max_tokens_) {
    refuse(tokens_, "prompt tokens");
  }
}

void WaitingList::enter(RequestId id, std::int64_t prompt_tokens) {
  prompt_tokens_.emplace(id, prompt_tokens);
  tokens_ += prompt_tokens;
}

void WaitingList::leave(RequestId id) {
  const auto found = prompt_tokens_.find(id);
  if (found == prompt_tokens_.end()) return;
  tokens_ -= found->second;
  prompt_tokens_.erase(found);
}

}  // namespace mmengine
