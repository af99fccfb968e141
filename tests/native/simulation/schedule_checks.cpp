// Checks of a schedule: what a span may be, which blocks came from where, whose turn it was.
#include <algorithm>
#include <string>

#include "simulation/checks.h"

namespace mmengine::simulation {

void Checks::check_spans(const Schedule& schedule) {
  std::set<RequestId> seen;
  int rows = 0, prompt_rows = 0, logits_rows = 0;
  for (const Span& span : schedule.spans) {
    const Sequence& s = *span.sequence;
    const auto known = static_cast<int>(s.tokens.size());
    report_.expect(seen.insert(s.id).second, "8", "request ", s.id, " has two spans");
    report_.expect(s.status == Status::running, record_of(s).cancelled ? "cancel" : "9", "request ",
                   s.id, " has rows and does not run");
    const bool device = span.start == kFromSlot;
    report_.expect(device == s.live && (device ? span.rows == 1 : span.start == s.computed), "7",
                   "request ", s.id, ": ", span.rows, " rows from ", span.start, ", computed ",
                   s.computed, s.live ? ", live" : "");
    report_.expect(span.rows > 0 && s.computed + span.rows <= known && known <= sizes_.max_context,
                   "7", "request ", s.id, ": ", span.rows, " rows after ", s.computed, " of ",
                   known);
    report_.expect(blocks_of(s.computed + span.rows) <= static_cast<int>(s.block_table.size()), "3",
                   "request ", s.id, ": ", s.block_table.size(), " blocks for ",
                   s.computed + span.rows, " tokens");
    report_.expect(span.samples == (s.computed + span.rows == known), "10", "request ", s.id,
                   ": samples before or after its last known token");
    rows += span.rows;
    if (!device) prompt_rows += span.rows - (s.num_generated() > 0 ? 1 : 0);
    logits_rows += span.rows - span.first_logits;
  }
  const StepLimits& limits = sizes_.limits;
  report_.expect(rows <= limits.rows && prompt_rows <= sizes_.prefill_chunk &&
                     logits_rows <= limits.logits_rows &&
                     static_cast<int>(schedule.spans.size()) <= limits.sequences,
                 "limits", rows, " rows, ", prompt_rows, " of prompts, ", logits_rows,
                 " of logits, ", schedule.spans.size(), " sequences");
  bool oldest = true;
  for (const auto& record : records_) {
    if (!record->running()) continue;
    const bool has_span = seen.contains(record->request.id);
    const bool pinned = record->sequence->preemptions >= kMaxPreemptions;
    report_.expect(has_span || !record->sequence->live || pinned, "turns", "request ",
                   record->request.id, " generates and has no row");
    report_.expect(has_span || !oldest, "fairness", "request ", record->request.id,
                   ", the oldest that runs, has no row");
    oldest = false;
  }
  // Who waits while later ones have rows: not for ever.
  for (const auto& record : records_) {
    if (!record->waiting()) continue;
    const bool later = !seen.empty() && *seen.rbegin() > record->request.id;
    if (later && ++record->overtaken > 1000) {
      report_.violation("fairness", "request ", record->request.id, " waited for 1000 steps");
    }
  }
}

int Checks::findable(const std::vector<Hash>& keys) const {
  const auto unknown = [this](Hash key) { return !shadow_.finds(key); };
  std::ptrdiff_t most =
      evicted_ > 0 ? 0 : std::find_if(keys.begin(), keys.end(), unknown) - keys.begin();
  for (const auto& record : records_) {
    if (record->filled == 0 || record->filled < evicted_) continue;
    const auto end =
        std::mismatch(keys.begin(), keys.end(), record->keys.begin(), record->keys.end()).first;
    most = std::max(most, end - keys.begin());
  }
  return static_cast<int>(most);
}

const Record* Checks::forked_from(const Record& record) const {
  const RequestId other = record.request.same_prompt_as;
  if (other == 0 || record.sequence->wants_rows() || record.sequence->preemptions > 0)
    return nullptr;
  const Record& parent = *records_[other - 1];
  if (!parent.running()) return nullptr;
  const std::vector<std::int32_t>&own = record.sequence->tokens, &others = parent.sequence->tokens;
  const auto known = static_cast<std::ptrdiff_t>(own.size()) - 1;
  const bool common = parent.request.salt == record.request.salt && known > 0 &&
                      parent.scheduled.computed >= known &&
                      std::equal(own.begin(), own.begin() + known, others.begin());
  return common ? &parent : nullptr;
}

void Checks::check_hits(Record& record) {
  const Sequence& s = *record.sequence;
  const int hits = s.computed / sizes_.block_tokens;
  const auto known = static_cast<int>(s.tokens.size());
  const Record* parent = forked_from(record);
  report_.expect((s.computed % sizes_.block_tokens == 0 || parent != nullptr) &&
                     s.computed < known && hits <= static_cast<int>(s.block_table.size()),
                 "6", "request ", s.id, " begins after ", s.computed, " of ", known, " tokens");
  const bool may_hit = (sizes_.share || parent != nullptr) && !s.wants_rows();
  report_.expect(may_hit || hits == 0, "6", "request ", s.id, " may not begin with cached blocks");
  std::vector<Hash> keys;
  for (int i = 0; i < (known - 1) / sizes_.block_tokens; ++i) {
    const Hash key = shadow_.key(record.request.salt, s.tokens, i);
    if (i < std::min(hits, static_cast<int>(s.block_table.size()))) {
      const std::int32_t block = s.block_table[static_cast<std::size_t>(i)];
      report_.expect(shadow_.holds(block, key), "6", "request ", s.id, " begins with block ", block,
                     " at ", i, ", which holds other tokens, another salt or is not full");
    }
    keys.push_back(key);
  }
  if (parent != nullptr) {
    report_.expect(s.computed == known - 1, "children", "request ", s.id, " begins after ",
                   s.computed, " of ", known - 1, " tokens that are those of ", parent->request.id);
    ++report_.statistics.forks;
  } else {
    const int expected = may_hit ? findable(keys) : 0;
    report_.expect(hits >= expected, "reuse", "request ", s.id, " begins with ", hits, " blocks; ",
                   expected, " hold its tokens");
  }
  if (hits > 0) ++report_.statistics.hits;

  if (!record.started) record.cached = std::min(s.computed, s.num_prompt_tokens);
  record.started = true;
  report_.expect(s.cached_tokens == record.cached, "cached_tokens", "request ", s.id, ": told ",
                 s.cached_tokens, ", begins after ", record.cached);
  report_.expect(!may_wait(record), "children", "request ", s.id, " begins before the prompt of ",
                 record.request.same_prompt_as, " is computed");
}

void Checks::check_copies(const Schedule& schedule) {
  std::set<std::int32_t> targets;
  std::size_t needed = 0;
  for (const auto& record : records_) {
    if (!record->running() || !record->admitted()) continue;
    if (record->sequence->computed % sizes_.block_tokens != 0) ++needed;
  }
  report_.expect(schedule.copies.size() == needed, "copies", schedule.copies.size(), " copies for ",
                 needed, " sequences that begin inside a block");
  for (const BlockCopy& copy : schedule.copies) {
    const auto held_by = [&](std::int32_t block) {
      return block >= 1 && block <= sizes_.num_blocks ? holders_[static_cast<std::size_t>(block)]
                                                      : 0;
    };
    report_.expect(held_by(copy.source) >= 1 && held_by(copy.target) == 1 &&
                       !shadow_.is_full(copy.target) && targets.insert(copy.target).second,
                   "copies", "block ", copy.source, " is copied to ", copy.target, "; ",
                   held_by(copy.source), " and ", held_by(copy.target), " sequences hold them");
    ++report_.statistics.copies;
  }
  for (const BlockCopy& copy : schedule.copies) {
    report_.expect(!targets.contains(copy.source), "copies", "block ", copy.source,
                   " is source and target");
  }
}

// What is new in a table was handed out now: whatever the block held is gone.
void Checks::check_table(Record& record) {
  const Sequence& s = *record.sequence;
  const std::vector<std::int32_t>& table = s.block_table;
  std::size_t fresh = static_cast<std::size_t>(s.computed / sizes_.block_tokens);
  if (!record.admitted()) {
    const std::vector<std::int32_t>& old = record.before.table;
    report_.expect(old.size() <= table.size() && std::equal(old.begin(), old.end(), table.begin()),
                   "3", "request ", s.id, ": its blocks were exchanged");
    fresh = old.size();
  }
  for (; fresh < table.size(); ++fresh) {
    const std::int32_t block = table[fresh];
    if (block < 1 || block > sizes_.num_blocks) continue;  // told already
    const int holders = holders_[static_cast<std::size_t>(block)];
    report_.expect(holders == 1, "2", "block ", block, " is handed out to request ", s.id, "; ",
                   holders, " sequences hold it");
    if (shadow_.take(block)) {
      evicted_ = report_.step;
      ++report_.statistics.evictions;
    }
  }
}

bool Checks::may_wait(const Record& record) const {
  const RequestId other = record.request.same_prompt_as;
  if (other == 0) return false;
  const Record& parent = *records_[other - 1];
  return parent.unfinished() && parent.scheduled.computed < parent.sequence->num_prompt_tokens;
}

// One that was preempted too often gives way to an older one that got blocks, if nobody between
// them could.
bool Checks::gives_way(const Record& victim) const {
  bool needed = false;
  for (const auto& record : records_) {
    if (record.get() == &victim) break;
    if (!record->running() || record->admitted()) continue;
    if (record->before.preemptions < kMaxPreemptions) needed = false;
    if (record->scheduled.table.size() > record->before.table.size()) needed = true;
  }
  return needed;
}

void Checks::check_order() {
  const Record* passed = nullptr;  // the oldest that was kept waiting
  const Record* victim = nullptr;  // the oldest that was preempted
  for (const auto& record : records_) {
    if (!record->unfinished()) continue;
    const RequestId id = record->request.id;
    if (passed != nullptr && record->admitted()) {
      report_.violation("fairness", "request ", id, " is admitted before ", passed->request.id);
    }
    const bool pinned = record->before.preemptions >= kMaxPreemptions;
    if (victim != nullptr && record->running() && !record->admitted() && !pinned) {
      report_.violation("fairness", "request ", victim->request.id, " is preempted before ", id);
    }
    if (record->waiting() && passed == nullptr && !may_wait(*record)) passed = record.get();
    if (record->preempted() && victim == nullptr) victim = record.get();
    if (record->preempted() && pinned) {
      report_.expect(gives_way(*record), "fairness", "request ", id, " gives way for the ",
                     record->scheduled.preemptions, "th time, to nobody or before a younger one");
      ++report_.statistics.pinned;
    }
    if (record->preempted()) {
      report_.statistics.preemptions += record->scheduled.preemptions - record->before.preemptions;
    }
  }
}

// Without a preemption in this step nothing that is free now was not free at its turn.
void Checks::check_admission(const Schedule& schedule) {
  int running = 0, prompt_rows = 0, wanted_rows = 0;
  for (const auto& record : records_) {
    if (record->unfinished() && record->preempted()) return;
    if (record->running()) ++running;
  }
  for (const Span& span : schedule.spans) {
    if (span.start != kFromSlot) {
      prompt_rows += span.rows - (span.sequence->num_generated() > 0 ? 1 : 0);
    }
    if (span.sequence->wants_rows()) wanted_rows += span.rows;
  }
  for (const auto& record : records_) {
    if (!record->waiting() || may_wait(*record)) continue;
    const Sequence& s = *record->sequence;
    const int tokens = std::min(static_cast<int>(s.tokens.size()) + 1, sizes_.max_context);
    const bool has_logits_rows =
        !s.wants_rows() || wanted_rows < sizes_.limits.logits_rows - sizes_.limits.sequences;
    const bool fits = running < sizes_.slots && prompt_rows < sizes_.prefill_chunk &&
                      has_logits_rows && blocks_of(tokens) <= cache_.available_blocks();
    report_.expect(!fits, "admission", "request ", s.id, " waits; ", running, " of ", sizes_.slots,
                   " slots and ", prompt_rows, " of ", sizes_.prefill_chunk,
                   " prompt rows are taken, ", cache_.available_blocks(), " blocks available");
    return;
  }
}

}  // namespace mmengine::simulation
