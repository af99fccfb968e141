// Which matrix is read after which. A model's step always reads its weights in the same order: what
// followed one of them last time is what a thread can ask memory for while it finishes that one.
#pragma once

#include <unordered_map>

#include "kernels/params.h"

namespace mmengine {

class WeightOrder {
 public:
  // What followed `weight` last time, or nullptr; notes that `weight` follows the call before.
  const Weight* advance(const Weight& weight) {
    if (last_ != nullptr) after_[last_] = weight;
    last_ = weight.data;
    const auto found = after_.find(weight.data);
    return found != after_.end() ? &found->second : nullptr;
  }

 private:
  std::unordered_map<const void*, Weight> after_;
  const void* last_ = nullptr;
};

}  // namespace mmengine
