#include "runtime/scheduler.h"

#include <algorithm>
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
  by_id_[sequence->id] = sequence.get();
  sequences_.push_back(std::move(sequence));
}

SchedulerCounts Scheduler::counts() const {
  SchedulerCounts counts;
  for (const auto& sequence : sequences_) {
    if (sequence->status == Status::running) ++counts.running;
    if (sequence->status == Status::waiting) ++counts.waiting;
  }
  return counts;
}

Sequence* Scheduler::find(RequestId id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : found->second;
}

Sequence* Scheduler::end(RequestId id, FinishReason reason) {
  Sequence* sequence = find(id);
  if (sequence == nullptr || sequence->status == Status::finished) return nullptr;
  finish(*sequence, reason);
  return sequence;
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

// Who gives up its blocks for `sequence`: of those that arrived later, which have no span in this
// step yet, the youngest; those that did so too often come last.
Sequence* Scheduler::find_victim(const Sequence& sequence) {
  Sequence* pinned = nullptr;
  for (auto s = sequences_.rbegin(); s != sequences_.rend() && s->get() != &sequence; ++s) {
    Sequence& other = **s;
    if (other.status != Status::running) continue;
    if (other.preemptions < kMaxPreemptions) return &other;
    if (pinned == nullptr) pinned = &other;
  }
  return pinned;
}

bool Scheduler::reserve(Sequence& sequence, int tokens) {
  while (!cache_.reserve(sequence, tokens)) {
    Sequence* victim = find_victim(sequence);
    if (victim == nullptr) return false;
    preempt(*victim);
  }
  return true;
}

// Rows for which there are blocks; of one block where none is free, which others then give up. A
// prompt may be cut anywhere, and nobody gives up blocks that are too few to go on with.
int Scheduler::rows_of_blocks(const Sequence& sequence) const {
  const auto held = static_cast<int>(sequence.block_table.size());
  const auto of = [&](int blocks) { return blocks * cache_.block_tokens() - sequence.computed; };
  const int rows = of(held + cache_.available_blocks());
  return rows > 0 ? rows : of(held + 1);
}

bool Scheduler::add_span(Sequence& sequence, Budget& budget, Schedule& schedule) {
  Span span;
  span.sequence = &sequence;
  const int known = static_cast<int>(sequence.tokens.size());
  const bool wants_rows = sequence.wants_rows();
  int own = 1;
  if (sequence.live) {
    span.start = kFromSlot;
    span.rows = 1;
  } else {
    span.start = sequence.computed;
    // One row of a sequence that generates is its slot's own, so that no prompt stalls it.
    own = sequence.num_generated() > 0 ? 1 : 0;
    span.rows = std::min(known - sequence.computed, budget.prompt_rows + own);
    span.rows = std::min(span.rows, rows_of_blocks(sequence));
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

  budget.prompt_rows -= std::max(span.rows - own, 0);
  if (wants_rows) budget.logits_rows -= span.rows;
  span.table_begin = sequence.table_sent;
  sequence.table_sent = static_cast<int>(sequence.block_table.size());
  schedule.spans.push_back(span);
  return true;
}

// A slot and the blocks that hold its first tokens. All that is known of it must fit beside those
// that run, or it would be computed in vain.
bool Scheduler::admit(Sequence& sequence, const Sequence* other, Budget& budget,
                      Schedule& schedule) {
  if (free_slots_.empty() || budget.prompt_rows == 0) return false;
  // Looking for a prefix costs time that grows with the prompt: not again before more is free.
  if (cache_.available_blocks() <= std::max(sequence.refused_with, 0)) return false;
  std::int32_t source = 0;
  if (other != nullptr && other->status == Status::running && sequence.preemptions == 0) {
    source = cache_.fork(*other, sequence);
  }
  if (sequence.computed == 0) cache_.attach(sequence);
  const int positions =
      std::min(static_cast<int>(sequence.tokens.size()) + 1, options_.max_context);
  const int needed = (positions + cache_.block_tokens() - 1) / cache_.block_tokens();
  const auto held = static_cast<int>(sequence.block_table.size());
  if (cache_.available_blocks() < needed - held) {
    cache_.release(sequence);
    sequence.refused_with = cache_.available_blocks();
    return false;
  }
  sequence.refused_with = -1;
  const int cached = std::min(sequence.computed, sequence.num_prompt_tokens);
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  if (!add_span(sequence, budget, schedule)) {  // no logits row is left for one that wants them all
    give_back(sequence);
    return false;
  }
  if (source != 0) {
    const auto next = static_cast<std::size_t>(cached / cache_.block_tokens());
    schedule.copies.push_back({source, sequence.block_table[next]});
  }
  sequence.status = Status::running;
  if (sequence.preemptions == 0) {
    sequence.cached_tokens = cached;
    cached_tokens_ += cached;
  }
  return true;
}

Schedule Scheduler::schedule() {
  Schedule schedule;
  // A row and a logits row of every slot are kept for those that generate.
  Budget budget{options_.prefill_chunk, options_.limits.logits_rows - options_.limits.sequences};
  // Nobody begins before one that waits for room, or in the step in which another gave it up.
  bool closed = false;
  const std::int64_t preemptions = preemptions_;
  for (const auto& owned : sequences_) {
    Sequence& sequence = *owned;
    if (sequence.status == Status::running) {
      const bool waits = !add_span(sequence, budget, schedule);
      if (waits && sequence.live && sequence.preemptions < kMaxPreemptions) preempt(sequence);
    } else if (sequence.status == Status::waiting && !closed && preemptions_ == preemptions) {
      // The one it waits for is before it, and advances whatever comes after.
      const Sequence* other =
          sequence.same_prompt_as != 0 ? find(sequence.same_prompt_as) : nullptr;
      if (other != nullptr && other->status != Status::finished &&
          other->computed < other->num_prompt_tokens) {
        continue;
      }
      closed = !admit(sequence, other, budget, schedule);
    }
  }
  return schedule;
}

// Appends the token that was chosen and those that are forced to follow. Returns how many.
int Scheduler::take_token(Sequence& sequence, std::int32_t token) {
  Constraint* constraint = sequence.constraint.get();
  const auto end_with = [&](FinishReason reason) {
    if (reason != FinishReason::running) finish(sequence, reason);
    return reason != FinishReason::running;
  };
  if (constraint != nullptr && constraint->next() == Constraint::Next::ended) {
    end_with(FinishReason::stop);
    return 0;
  }
  int taken = 0;
  sequence.live = true;
  while (true) {
    if (constraint != nullptr && constraint->next() == Constraint::Next::failed) {
      sequence.error = constraint->error();
      end_with(FinishReason::error);
      return taken;
    }
    ++taken;
    if (end_with(sequence.append(token, options_.max_context))) return taken;
    if (constraint == nullptr) return taken;
    // Log-probabilities of forced tokens need a row of logits each.
    if (!constraint->advance(token)) continue;
    if (!constraint->forces() || sequence.sampling.logprobs >= 0) return taken;
    token = constraint->forced_token();
    sequence.live = false;  // what comes next is known here, and not on the device
  }
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
      output.num_tokens = take_token(sequence, result.out.id[output.row]);
    } else if (span.samples) {
      finish(sequence, FinishReason::length);
    }
    if (output.num_tokens > 0 || output.num_wanted_rows > 0 ||
        sequence.status == Status::finished) {
      outputs.push_back(output);
    }
  }
  return outputs;
}

void Scheduler::clear() {
  for (const auto& sequence : sequences_) {
    if (sequence->status != Status::finished) finish(*sequence, FinishReason::cancelled);
  }
  reap();
}

void Scheduler::reap() {
  std::erase_if(sequences_, [this](const auto& s) {
    if (s->status != Status::finished) return false;
    by_id_.erase(s->id);
    return true;
  });
}

}  // namespace mmengine
