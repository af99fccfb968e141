// WaitingList: who holds room in the queue, which max_waiting and max_waiting_tokens bound. A
// request leaves when it begins or somebody ends it, whichever is first; one that later gives up
// its KV does not come back. Who holds the engine's inbox calls it.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "mmengine/types.h"

namespace mmengine {

class WaitingList {
 public:
  // max_tokens: of their prompts together; 0: any number.
  WaitingList(int max_requests, std::int64_t max_tokens)
      : max_requests_(max_requests), max_tokens_(max_tokens) {}

  // Error{overloaded} where there is no room for one more with a prompt of so many tokens.
  void check(std::int64_t prompt_tokens) const;
  void enter(RequestId id, std::int64_t prompt_tokens);
  void leave(RequestId id);  // nothing, if it is not here (any more)

 private:
  int max_requests_;
  std::int64_t max_tokens_;
  std::unordered_map<RequestId, std::int64_t> prompt_tokens_;
  std::int64_t tokens_ = 0;
};

}  // namespace mmengine
