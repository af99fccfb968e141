#include "runtime/scheduler.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "base/check.h"

namespace mmengine {

Scheduler::Scheduler(const SchedulerOptions& options, KvCache& cache)
    : options_(options), cache_(cache) {
  const int needed = (options.max_context + cache.block_tokens() - 1) / cache.block_tokens();
  MM_CHECK(cache.total_blocks() >= needed, "scheduler", "a pool of ", cache.total_blocks(),
           " blocks cannot hold a sequence of ", options.max_context, " tokens");
  for (int slot = options.limits.sequences - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

void Scheduler::submit(std::unique_ptr<Sequence> sequence) {
  sequences_.push_back(std::move(sequence));
}

bool Scheduler::has_unfinished() const { return num_waiting() + num_running() > 0; }

int Scheduler::num_waiting() const {
  return static_cast<int>(std::count_if(sequences_.begin(), sequences_.end(), [](const auto& s) {
    return s->status == Status::waiting;
  }));
}

int Scheduler::num_running() const {
  return static_cast<int>(std::count_if(sequences_.begin(), sequences_.end(), [](const auto& s) {
    return s->status == Status::running;
  }));
}

Sequence* Scheduler::end(RequestId id, FinishReason reason) {
  for (const auto& sequence : sequences_) {
    if (sequence->id == id && sequence->status != Status::finished) {
      finish(*sequence, reason);
      return sequence.get();
    }
  }
  return nullptr;
}

void Scheduler::give_back(Sequence& sequence) {
  cache_.release(sequence);
  if (sequence.slot >= 0) free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
  sequence.live = false;
}

void Scheduler::finish(Sequence& sequence, FinishReason reason) {
  give_back(sequence);
  sequence.status = Status::finished;
  sequence.finish = reason;
}

void Scheduler::preempt(Sequence& sequence) {
  give_back(sequence);
  sequence.status = Status::waiting;
  ++sequence.preemptions;
  ++preemptions_;
}

// Blocks for [0, tokens), taken from the youngest running sequences if need be. Those come later in
// the order of arrival, so they have no span in this step yet.
bool Scheduler::reserve(Sequence& sequence, int tokens) {
  while (!cache_.reserve(sequence, tokens)) {
    const auto youngest = std::find_if(sequences_.rbegin(), sequences_.rend(),
                                       [](const auto& s) { return s->status == Status::running; });
    if (youngest == sequences_.rend() || youngest->get() == &sequence) return false;
    preempt(**youngest);
  }
  return true;
}

bool Scheduler::add_span(Sequence& sequence, Budget& budget, Schedule& schedule) {
  Span span;
  span.sequence = &sequence;
  const int known = static_cast<int>(sequence.tokens.size());
  const bool wants_rows = sequence.wants_rows();
  if (sequence.live) {
    span.start = kFromSlot;
    span.rows = 1;
  } else {
    span.start = sequence.computed;
    span.rows = std::min(known - sequence.computed, budget.prompt_rows);
    if (wants_rows) span.rows = std::min(span.rows, budget.logits_rows);
  }
  if (span.rows <= 0) return false;
  span.samples = sequence.computed + span.rows == known;
  span.first_logits = span.rows - (span.samples ? 1 : 0);
  if (wants_rows) {
    const int sent = std::max(sequence.rows_sent - sequence.computed, 0);
    span.first_logits = std::min(sent, span.first_logits);
  }
  if (!reserve(sequence, sequence.computed + span.rows)) return false;

  if (!sequence.live) budget.prompt_rows -= span.rows;
  if (wants_rows) budget.logits_rows -= span.rows;
  span.table_begin = sequence.table_sent;
  sequence.table_sent = static_cast<int>(sequence.block_table.size());
  schedule.spans.push_back(span);
  return true;
}

Schedule Scheduler::schedule() {
  Schedule schedule;
  // A row and a logits row of every slot are kept for those that generate.
  Budget budget{options_.prefill_chunk, options_.limits.logits_rows - options_.limits.sequences};
  std::unordered_set<RequestId> unknown_prompts;  // of those before, whose KV is not complete
  for (const auto& owned : sequences_) {
    Sequence& sequence = *owned;
    if (cache_.shares() && sequence.computed < sequence.num_prompt_tokens) {
      unknown_prompts.insert(sequence.id);
    }
    if (sequence.status == Status::running) {
      if (!add_span(sequence, budget, schedule) && sequence.live) preempt(sequence);
    } else if (sequence.status == Status::waiting) {
      // All that is known of it must fit beside those that run, or it would be computed in vain.
      const int positions =
          std::min(static_cast<int>(sequence.tokens.size()) + 1, options_.max_context);
      const int needed = (positions + cache_.block_tokens() - 1) / cache_.block_tokens();
      if (free_slots_.empty() || budget.prompt_rows == 0) break;
      // The one it waits for is before it, and advances whatever comes after.
      const RequestId other = sequence.same_prompt_as;
      if (other != 0 && unknown_prompts.contains(other)) continue;
      // Looking for a prefix costs time that grows with the prompt: not again before more is free.
      if (cache_.available_blocks() <= sequence.refused_with) break;
      cache_.attach(sequence);
      const auto attached = static_cast<int>(sequence.block_table.size());
      if (cache_.available_blocks() < needed - attached) {
        cache_.release(sequence);
        sequence.refused_with = cache_.available_blocks();
        break;
      }
      sequence.refused_with = -1;
      if (sequence.preemptions == 0) {
        sequence.cached_tokens = std::min(sequence.computed, sequence.num_prompt_tokens);
        cached_tokens_ += sequence.cached_tokens;
      }
      sequence.status = Status::running;
      sequence.slot = free_slots_.back();
      free_slots_.pop_back();
      if (!add_span(sequence, budget, schedule)) {
        give_back(sequence);
        sequence.status = Status::waiting;
        break;
      }
    }
  }
  return schedule;
}

std::vector<Output> Scheduler::commit(const Schedule& schedule, const StepResult& result) {
  std::vector<Output> outputs;
  for (std::size_t i = 0; i < schedule.spans.size(); ++i) {
    const Span& span = schedule.spans[i];
    Sequence& sequence = *span.sequence;
    sequence.computed += span.rows;
    cache_.share(sequence);
    Output output;
    output.sequence = &sequence;
    output.first_logits = result.cu_logits[i];
    output.row = result.cu_logits[i + 1] - 1;
    const bool yields_token = span.samples && !sequence.logits;
    output.num_wanted_rows = span.rows - span.first_logits - (yields_token ? 1 : 0);
    sequence.rows_sent += output.num_wanted_rows;
    if (yields_token) {
      const std::int32_t token = result.out.id[output.row];
      const FinishReason reason = sequence.append(token, options_.max_context);
      sequence.live = true;
      if (reason != FinishReason::running) finish(sequence, reason);
      output.num_tokens = 1;
    } else if (span.samples) {
      finish(sequence, FinishReason::length);
    }
    if (output.num_tokens > 0 || output.num_wanted_rows > 0) outputs.push_back(output);
  }
  return outputs;
}

void Scheduler::reap() {
  std::erase_if(sequences_, [](const auto& s) { return s->status == Status::finished; });
}

}  // namespace mmengine
