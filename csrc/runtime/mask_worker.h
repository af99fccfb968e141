// MaskWorker: prepares the constraints of a step on a thread of its own, so that rules written in a
// host language cost no time while the model computes. The thread starts with the first constraint.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/sequence.h"

namespace mmengine {

class MaskWorker {
 public:
  MaskWorker() = default;
  MaskWorker(const MaskWorker&) = delete;
  MaskWorker& operator=(const MaskWorker&) = delete;
  ~MaskWorker();

  // For every span that samples: its sequence's constraint is the worker's until wait() returns.
  void start(const Schedule& schedule);
  void wait();

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Sequence*> sequences_;  // not empty: the worker's turn
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace mmengine
