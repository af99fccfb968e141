#include "runtime/mask_worker.h"

#include <utility>

namespace mmengine {

MaskWorker::~MaskWorker() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void MaskWorker::start(const Schedule& schedule) {
  std::vector<Sequence*> constrained;
  for (const Span& span : schedule.spans) {
    if (span.samples && span.sequence->constraint) constrained.push_back(span.sequence);
  }
  if (constrained.empty()) return;
  if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
  {
    const std::lock_guard lock(mutex_);
    sequences_ = std::move(constrained);
  }
  changed_.notify_all();
}

void MaskWorker::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return sequences_.empty(); });
}

void MaskWorker::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closing_ || !sequences_.empty(); });
    if (closing_) return;
    lock.unlock();  // sequences_ is this thread's until it is empty
    for (Sequence* sequence : sequences_) {
      static const std::vector<std::int32_t> kNone;
      sequence->constraint->prepare(sequence->bans_stops() ? sequence->stop_ids : kNone);
    }
    lock.lock();
    sequences_.clear();
    changed_.notify_all();
  }
}

}  // namespace mmengine
