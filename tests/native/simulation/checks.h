// The rules, looked at from outside after each part of a step. What a check needs of the time
// before is kept in Records, one a request; nothing is asked of the core but what its headers
// offer.
#pragma once

#include <memory>
#include <set>
#include <vector>

#include "runtime/sampler.h"
#include "runtime/scheduler.h"
#include "simulation/device.h"
#include "simulation/report.h"
#include "simulation/shadow.h"
#include "simulation/workload.h"

namespace mmengine::simulation {

struct Record {
  Request request;
  const Sequence* sequence = nullptr;  // null: destroyed
  bool cancelled = false, started = false;
  int cached = 0;     // prompt tokens that were there when it began for the first time
  int delivered = 0;  // wanted prompt rows
  int overtaken = 0;  // steps in which it waited while later ones had rows
  // Keys of its full blocks when it filled one last, and that step: all are known to the index
  // then.
  std::vector<Hash> keys;
  int filled = 0;

  struct State {
    Status status = Status::waiting;
    bool live = false;
    int computed = 0, preemptions = 0;
    std::size_t num_tokens = 0;
    std::vector<std::int32_t> table;
  };
  State before, scheduled;  // before and after the last schedule()

  bool unfinished() const { return sequence != nullptr && sequence->status != Status::finished; }
  bool running() const { return sequence != nullptr && sequence->status == Status::running; }
  bool waiting() const { return sequence != nullptr && sequence->status == Status::waiting; }
  bool preempted() const { return scheduled.preemptions > before.preemptions; }
  bool admitted() const {
    return scheduled.status == Status::running && (before.status == Status::waiting || preempted());
  }
};

class Checks {
 public:
  Checks(const Sizes& sizes, const KvCache& cache, const Scheduler& scheduler, const Device& device,
         Report& report);

  void submitted(const Request& request, const Sequence* sequence);
  void ended(Record& record, bool was_unfinished, bool told);
  void before_schedule();
  void after_schedule(const Schedule& schedule);
  void after_begin(const Schedule& schedule, const Batch& batch);  // nothing is written yet
  void after_sample_input(const Schedule& schedule, const SampleInput& input);
  void after_commit(const Schedule& schedule, const std::vector<Output>& outputs,
                    const std::vector<std::int32_t>& sampled);
  void before_reap();
  void when_idle();
  std::vector<std::unique_ptr<Record>>& records() { return records_; }

 private:
  // Of the state between two parts of a step (checks.cpp).
  void check_blocks();
  void check_counts();
  void check_finished(const Record& record);
  void check_slots();
  void check_kv(const Record& record);
  void check_slot_state(const Record& record);
  // Of a schedule (schedule_checks.cpp).
  void check_spans(const Schedule& schedule);
  void check_table(Record& record);
  void check_hits(Record& record);
  void check_order();
  bool gives_way(const Record& victim) const;
  void check_copies(const Schedule& schedule);
  // The running sequence whose first blocks a new one takes over; null: of none.
  const Record* forked_from(const Record& record) const;
  void check_admission(const Schedule& schedule);
  // Of a step (step_checks.cpp).
  void check_rows(const Span& span, int s);
  void check_sampling_row(const Record& record, const SampleInput& input, int e);
  void check_output(const Output& output, const std::vector<std::int32_t>& sampled);

  Record& record_of(const Sequence& sequence) { return *records_[sequence.id - 1]; }
  // Blocks at the front of `keys` that must be found: those of one sequence that filled a block
  // since the last eviction, and all that were ever computed as long as there was none.
  int findable(const std::vector<Hash>& keys) const;
  // Whether a waiting one may let others pass, because it waits for a prompt.
  bool may_wait(const Record& record) const;
  int blocks_of(int tokens) const {
    return (tokens + sizes_.block_tokens - 1) / sizes_.block_tokens;
  }

  const Sizes& sizes_;
  const KvCache& cache_;
  const Scheduler& scheduler_;
  const Device& device_;
  Report& report_;
  Shadow shadow_;
  std::vector<std::unique_ptr<Record>> records_;  // by arrival; ids count from 1
  std::vector<int> holders_;                      // of each block, after the last schedule
  int evicted_ = 0;  // the last step in which a full block was handed out
};

}  // namespace mmengine::simulation
