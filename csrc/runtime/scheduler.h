// Scheduler: decides what the next step computes, and takes back what it found. Owns every
// Sequence. Sees block ids, slots and token counts; never a device, never the runner. Engine thread
// only. First come, first served: each step gives one row to every sequence that generates, and
// cuts the prompts of the oldest others, and what a constraint forces, to `prefill_chunk` rows
// together. When blocks run out, the youngest running sequence gives up its KV and waits to be
// computed again, after kMaxPreemptions times only if there is no other; the pool holds at least
// one sequence of max_context, so the oldest always advances.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/sequence.h"

namespace mmengine {

constexpr int kMaxPreemptions = 3;

struct SchedulerOptions {
  StepLimits limits;
  int max_context = 0;    // tokens of a sequence, prompt and answer
  int prefill_chunk = 0;  // prompt tokens of a step
};

struct Output {  // one sequence's share of a commit
  Sequence* sequence = nullptr;
  int num_tokens = 0;       // the last of sequence->tokens; > 1: forced ones
  int first_logits = 0;     // row of the StepResult
  int num_wanted_rows = 0;  // prompt rows that the sequence asked for
  int row = 0;              // row of the StepResult that yielded the token
};

struct SchedulerCounts {
  int running = 0, waiting = 0;  // waiting: those who gave up their KV, too
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, KvCache& cache);
  void submit(std::unique_ptr<Sequence> sequence);
  // Ends a request; returns it, or null if it is unknown or already finished.
  Sequence* end(RequestId id, FinishReason reason);
  Schedule schedule();
  std::vector<Output> commit(const Schedule& schedule, const StepResult& result);
  void reap();   // destroys finished sequences
  void clear();  // all
  bool idle() const { return sequences_.empty(); }
  SchedulerCounts counts() const;
  std::int64_t preemptions() const { return preemptions_; }
  std::int64_t cached_tokens() const { return cached_tokens_; }

 private:
  struct Budget {
    int prompt_rows, logits_rows;
  };
  Sequence* find(RequestId id) const;  // null: unknown
  bool admit(Sequence& sequence, const Sequence* other, Budget& budget, Schedule& schedule);
  bool add_span(Sequence& sequence, Budget& budget, Schedule& schedule);
  int rows_of_blocks(const Sequence& sequence) const;
  bool reserve(Sequence& sequence, int tokens);
  Sequence* find_victim(const Sequence& sequence);
  int take_token(Sequence& sequence, std::int32_t token);
  void preempt(Sequence& sequence);
  void give_back(Sequence& sequence);
  void finish(Sequence& sequence, FinishReason reason);

  SchedulerOptions options_;
  KvCache& cache_;
  std::vector<std::unique_ptr<Sequence>> sequences_;  // by arrival
  std::unordered_map<RequestId, Sequence*> by_id_;
  std::vector<int> free_slots_;
  std::int64_t preemptions_ = 0, cached_tokens_ = 0;
};

}  // namespace mmengine
