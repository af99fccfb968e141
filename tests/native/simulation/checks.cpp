#include "simulation/checks.h"

#include <algorithm>

namespace mmengine::simulation {
namespace {

Record::State state_of(const Sequence& s) {
  return {s.status, s.live, s.computed, s.preemptions, s.tokens.size(), s.block_table};
}

}  // namespace

Checks::Checks(const Sizes& sizes, const KvCache& cache, const Scheduler& scheduler,
               const Device& device, Report& report)
    : sizes_(sizes),
      cache_(cache),
      scheduler_(scheduler),
      device_(device),
      report_(report),
      shadow_(sizes.num_blocks, sizes.block_tokens),
      holders_(static_cast<std::size_t>(sizes.num_blocks) + 1) {}

void Checks::submitted(const Request& request, const Sequence* sequence) {
  records_.push_back(std::make_unique<Record>());
  records_.back()->request = request;
  records_.back()->sequence = sequence;
  ++report_.statistics.requests;
}

void Checks::ended(Record& record, bool was_unfinished, bool told) {
  const RequestId id = record.request.id;
  report_.expect(told == was_unfinished, "cancel", "request ", id, ": told ", told);
  if (!was_unfinished) return;
  record.cancelled = true;
  const Sequence& s = *record.sequence;
  report_.expect(s.status == Status::finished && s.block_table.empty() && s.slot == -1, "cancel",
                 "request ", id, " keeps ", s.block_table.size(), " blocks and slot ", s.slot);
  ++report_.statistics.cancelled;
  check_blocks();
}

void Checks::before_schedule() {
  for (const auto& record : records_) {
    if (record->sequence != nullptr) record->before = state_of(*record->sequence);
  }
}

void Checks::after_schedule(const Schedule& schedule) {
  for (const auto& record : records_) {
    if (record->sequence != nullptr) record->scheduled = state_of(*record->sequence);
  }
  check_blocks();
  check_slots();
  check_spans(schedule);
  for (const auto& record : records_) {
    if (!record->running()) continue;
    if (record->admitted()) check_hits(*record);
    check_table(*record);
  }
  check_order();
  check_copies(schedule);
  check_admission(schedule);
}

void Checks::before_reap() {
  check_blocks();
  check_slots();
  check_counts();
  for (const auto& record : records_) {
    if (record->running()) {
      check_kv(*record);
      check_slot_state(*record);
    }
    if (record->sequence == nullptr || record->sequence->status != Status::finished) continue;
    check_finished(*record);
    record->sequence = nullptr;
  }
}

void Checks::check_finished(const Record& record) {
  const Sequence& s = *record.sequence;
  const Text text = solo(record.request, sizes_.max_context);
  if (record.cancelled) {
    const bool begins = s.tokens.size() <= text.tokens.size() &&
                        std::equal(s.tokens.begin(), s.tokens.end(), text.tokens.begin());
    report_.expect(begins, "11", "request ", s.id, ", cancelled: another text than alone");
    report_.expect(s.finish == FinishReason::cancelled, "cancel", "request ", s.id,
                   " ends for another reason");
    return;
  }
  report_.expect(s.tokens == text.tokens, "11", "request ", s.id, ": another text than alone, ",
                 s.tokens.size(), " tokens of ", text.tokens.size());
  report_.expect(s.finish == text.finish, "11", "request ", s.id, " ends for reason ",
                 static_cast<int>(s.finish), ", alone for ", static_cast<int>(text.finish));
  const bool failed = text.finish == FinishReason::error;
  report_.expect(
      (s.finish == FinishReason::error) == failed && s.error == (failed ? "the rules fail" : ""),
      "20", "request ", s.id, ": its rules ", failed ? "fail" : "hold", ", told: '", s.error, "'");
  if (failed) ++report_.statistics.errors;
  const int wanted = s.num_wanted_rows();
  report_.expect(record.delivered == wanted || failed, "rows", "request ", s.id, ": ",
                 record.delivered, " rows of ", wanted);
}

void Checks::check_counts() {
  SchedulerCounts is;
  for (const auto& record : records_) {
    if (record->running()) ++is.running;
    if (record->waiting()) ++is.waiting;
  }
  const SchedulerCounts told = scheduler_.counts();
  report_.expect(told.running == is.running && told.waiting == is.waiting, "counts", "told ",
                 told.running, " running, ", told.waiting, " waiting; expected ", is.running, ", ",
                 is.waiting);
}

void Checks::when_idle() {
  check_blocks();
  report_.expect(cache_.used_blocks() == 0, "1", "idle, and ", cache_.used_blocks(),
                 " blocks are used");
}

void Checks::check_blocks() {
  std::fill(holders_.begin(), holders_.end(), 0);
  int held = 0;
  for (const auto& record : records_) {
    if (record->sequence == nullptr) continue;
    const Sequence& s = *record->sequence;
    report_.expect(s.status == Status::running || (s.block_table.empty() && s.slot == -1), "9",
                   "request ", s.id, " does not run and holds ", s.block_table.size(),
                   " blocks and slot ", s.slot);
    std::set<std::int32_t> own;
    for (const std::int32_t block : s.block_table) {
      report_.expect(own.insert(block).second, "1", "request ", s.id, " holds block ", block,
                     " twice");
      if (block < 1 || block > sizes_.num_blocks) {
        report_.violation("3", "request ", s.id, " holds block ", block);
      } else if (holders_[static_cast<std::size_t>(block)]++ == 0) {
        ++held;
      }
    }
  }
  const int free = cache_.free_blocks(), cached = cache_.cached_blocks();
  report_.expect(cache_.total_blocks() == sizes_.num_blocks && free >= 0 && cached >= 0 &&
                     free + cached + held == sizes_.num_blocks && cache_.used_blocks() == held,
                 "1", free, " free + ", cached, " cached + ", held, " held of ", sizes_.num_blocks,
                 ", told as used: ", cache_.used_blocks());
}

void Checks::check_slots() {
  std::set<int> slots;
  for (const auto& record : records_) {
    if (!record->running()) continue;
    const int slot = record->sequence->slot;
    report_.expect(slot >= 0 && slot < sizes_.slots && slots.insert(slot).second, "slots",
                   "request ", record->request.id, " has slot ", slot, " of ", sizes_.slots);
  }
}

void Checks::check_kv(const Record& record) {
  const Sequence& s = *record.sequence;
  report_.expect(s.computed <= static_cast<int>(s.tokens.size()) &&
                     static_cast<int>(s.tokens.size()) <= sizes_.max_context,
                 "7", "request ", s.id, ": computed ", s.computed, " of ", s.tokens.size(),
                 " tokens, context ", sizes_.max_context);
  if (blocks_of(s.computed) > static_cast<int>(s.block_table.size())) {
    report_.violation("3", "request ", s.id, ": ", s.block_table.size(), " blocks for ", s.computed,
                      " computed tokens");
    return;
  }
  Hash state = 0;
  for (int p = 0; p < std::min(s.computed, static_cast<int>(s.tokens.size())); ++p) {
    const std::int32_t block = s.block_table[static_cast<std::size_t>(p / sizes_.block_tokens)];
    const Cell& cell = device_.cell(block, p % sizes_.block_tokens);
    const Hash own = embed(s.tokens[static_cast<std::size_t>(p)], p);
    state = attend(state, own);
    if (cell.first == own && cell.second == state) continue;
    report_.violation(
        "4", "request ", s.id, ", position ", p, " of ", s.computed, ": block ", block,
        cell.first == own ? " was computed after another beginning" : " holds another token");
    return;
  }
}

void Checks::check_slot_state(const Record& record) {
  const Sequence& s = *record.sequence;
  if (!s.live || s.slot < 0 || s.slot >= sizes_.slots) return;
  report_.expect(s.computed + 1 == static_cast<int>(s.tokens.size()), "7", "request ", s.id,
                 " generates with ", s.computed, " computed of ", s.tokens.size(), " tokens");
  report_.expect(device_.length(s.slot) == s.computed && device_.pending(s.slot) == s.tokens.back(),
                 "13", "request ", s.id, ", slot ", s.slot, ": length ", device_.length(s.slot),
                 ", next ", device_.pending(s.slot), "; expected ", s.computed, " and ",
                 s.tokens.back());
}

}  // namespace mmengine::simulation
