// A random workload: everything that is chosen by chance, from one seed. Sizes go down to the least
// that can work; prompts often begin like another one or go on after an answer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "simulation/fake_model.h"

namespace mmengine::simulation {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(mix(seed, 0)) {}
  std::uint64_t next() { return mix(state_, ++count_); }
  int below(int n) { return static_cast<int>(next() % static_cast<std::uint64_t>(n)); }
  int between(int low, int high) { return low + below(high - low + 1); }
  bool chance(int percent) { return below(100) < percent; }
  template <class T>
  const T& one_of(const std::vector<T>& list) {
    return list[static_cast<std::size_t>(below(static_cast<int>(list.size())))];
  }

 private:
  std::uint64_t state_, count_ = 0;
};

struct Sizes {
  int block_tokens = 0, max_context = 0, num_blocks = 0, slots = 0, prefill_chunk = 0;
  StepLimits limits;
  bool share = false;
};

class Workload {
 public:
  explicit Workload(std::uint64_t seed);

  const Sizes& sizes() const { return sizes_; }
  bool exhausted() const { return left_ == 0; }
  // Requests that arrive before the next step, often none.
  std::vector<Request> arrivals();
  // Index of a request to cancel now, of `count`; -1: none.
  int victim(int count) {
    return count > 0 && random_.chance(cancel_percent_) ? random_.below(count) : -1;
  }
  // Texts that later prompts may go on after.
  void remember(const std::vector<std::int32_t>& text) { known_.push_back(text); }

 private:
  std::vector<std::int32_t> prompt(int length);
  Request request();

  Random random_;
  Sizes sizes_;
  int left_ = 0, arrival_percent_ = 0, cancel_percent_ = 0;
  RequestId last_ = 0;
  bool salts_ = false;
  bool tight_ = false;  // many short prompts with long answers in a small pool
  std::vector<std::vector<std::int32_t>> known_;
};

}  // namespace mmengine::simulation
