// Checks of a step: the rows that the device resolved, the rows of the sample input, the outputs.
#include <algorithm>
#include <stdexcept>

#include "simulation/checks.h"

namespace mmengine::simulation {

void Checks::after_begin(const Schedule& schedule, const Batch& batch) {
  report_.expect(batch.sequences == static_cast<int>(schedule.spans.size()), "limits",
                 batch.sequences, " sequences of ", schedule.spans.size());
  for (int s = 0; s < batch.sequences; ++s) {
    check_rows(schedule.spans[static_cast<std::size_t>(s)], s);
  }
  report_.statistics.rows += batch.rows;
}

void Checks::check_rows(const Span& span, int s) {
  const Step& step = device_.step();
  const Sequence& sequence = *span.sequence;
  const RequestId id = sequence.id;
  Record& record = record_of(sequence);
  const int first = step.cu_rows[s], last = step.cu_rows[s + 1];
  report_.expect(last - first == span.rows, "limits", "request ", id, ": ", last - first,
                 " rows of ", span.rows);
  const int slot = step.slot[s];
  report_.expect(slot == sequence.slot, "slots", "request ", id, " is computed in slot ", slot);
  for (int r = first; r < last; ++r) {
    const int position = step.positions[r];
    report_.expect(position == sequence.computed + r - first, "7", "request ", id, ": row ",
                   r - first, " is of position ", position, ", computed ", sequence.computed);
    const auto p = static_cast<std::size_t>(position);
    report_.expect(p < sequence.tokens.size() && step.ids[r] == sequence.tokens[p], "fed",
                   "request ", id, ", position ", position, ": fed token ", step.ids[r]);
    const std::size_t index = p / static_cast<std::size_t>(sizes_.block_tokens);
    const std::int32_t block = device_.block_at(slot, position);
    if (index >= sequence.block_table.size() || block < 1 || block > sizes_.num_blocks) continue;
    report_.expect(holders_[static_cast<std::size_t>(block)] == 1 && !shadow_.is_full(block), "2",
                   "request ", id, " writes position ", position, " into block ", block,
                   shadow_.is_full(block) ? ", which is full" : ", which others hold");
  }
  for (int p = 0; p < sequence.computed + span.rows; ++p) {
    const auto index = static_cast<std::size_t>(p / sizes_.block_tokens);
    if (index < sequence.block_table.size() &&
        device_.block_at(slot, p) == sequence.block_table[index])
      continue;
    report_.violation("3", "request ", id, ", slot ", slot, ": position ", p, " lies in block ",
                      device_.block_at(slot, p), ", which is not its own");
    break;
  }
  const int begin = step.cu_logits[s], end = step.cu_logits[s + 1];
  bool suffix = end - begin == span.rows - span.first_logits && end - begin <= span.rows;
  for (int e = begin; e < end; ++e) suffix = suffix && step.logits_row[e] == last - (end - e);
  report_.expect(suffix, "10", "request ", id, ": its ", end - begin, " logits rows are not its ",
                 span.rows - span.first_logits, " last ones");
  if (sequence.preemptions == 0 && sequence.computed == record.cached) {
    report_.expect(
        std::min(step.positions[first], sequence.num_prompt_tokens) == sequence.cached_tokens,
        "cached_tokens", "request ", id, ": told ", sequence.cached_tokens,
        ", the first row is of ", step.positions[first]);
  }
}

void Checks::after_sample_input(const Schedule& schedule, const SampleInput& input) {
  const Step& step = device_.step();
  for (std::size_t s = 0; s < schedule.spans.size(); ++s) {
    const Span& span = schedule.spans[s];
    const Sequence& sequence = *span.sequence;
    for (int e = step.cu_logits[s]; e < step.cu_logits[s + 1]; ++e) {
      const SampleRow& row = input.row[e];
      if (span.samples && e + 1 == step.cu_logits[s + 1] && !sequence.logits) {
        check_sampling_row(record_of(sequence), input, e);
        continue;
      }
      const auto next = static_cast<std::size_t>(step.positions[step.logits_row[e]]) + 1;
      const std::int32_t given =
          sequence.logits || next >= sequence.tokens.size() ? -1 : sequence.tokens[next];
      const int logprobs = sequence.logits ? -1 : sequence.sampling.prompt_logprobs;
      report_.expect(row.given == given && row.logprobs == logprobs, "rows", "request ",
                     sequence.id, ", position ", next - 1, ": scores token ", row.given, " with ",
                     row.logprobs, " alternatives, expected ", given, " with ", logprobs);
    }
  }
}

void Checks::check_sampling_row(const Record& record, const SampleInput& input, int e) {
  const Request& request = record.request;
  const SamplingParams& params = request.sampling;
  const SampleRow& row = input.row[e];
  const Adjustment is = simulation::adjustment_of(input, e);
  Adjustment expected;
  try {
    expected = adjustment_of(request, record.sequence->tokens);
  } catch (const std::runtime_error&) {
    return;  // whatever is chosen, nobody looks at it
  }
  if (request.grammar != 0 && expected.allowed != 0) {
    const std::uint32_t allowed = row.given >= 0 ? std::uint32_t{1} << row.given : is.allowed;
    report_.expect(allowed == expected.allowed, "14", "request ", request.id, ", token ",
                   record.sequence->tokens.size(), ": its rules allow other tokens");
    ++(row.given >= 0 ? report_.statistics.forced : report_.statistics.masked);
  }
  report_.expect(row.seed == request.seed, "12", "request ", request.id,
                 " draws with another seed");
  report_.expect(std::equal(is.generated, is.generated + kVocab, expected.generated) &&
                     std::equal(is.listed, is.listed + kVocab, expected.listed),
                 "13", "request ", request.id, ": its counts are not those of its tokens");
  const bool bans = request.grammar != 0 ||
                    (row.given == -1 && std::equal(is.banned, is.banned + kVocab, expected.banned));
  report_.expect(bans && std::equal(is.bias, is.bias + kVocab, expected.bias) &&
                     is.temperature == expected.temperature &&
                     is.repetition == expected.repetition && is.frequency == expected.frequency &&
                     is.presence == expected.presence && row.top_k == params.top_k &&
                     row.top_p == params.top_p && row.min_p == params.min_p &&
                     row.logprobs == params.logprobs,
                 "lists", "request ", request.id, " is sampled with other parameters or lists");
}

void Checks::check_output(const Output& output, const std::vector<std::int32_t>& sampled) {
  const Sequence& s = *output.sequence;
  Record& record = record_of(s);
  const Step& step = device_.step();
  const auto position_of = [&](int e) { return step.positions[step.logits_row[e]]; };
  for (int i = 0; i < output.num_wanted_rows; ++i) {
    const int position = position_of(output.first_logits + i);
    report_.expect(position == record.delivered, "rows", "request ", s.id, ": row of position ",
                   position, " instead of ", record.delivered);
    ++record.delivered;
    ++report_.statistics.delivered_rows;
  }
  report_.expect(record.delivered <= s.num_wanted_rows(), "rows", "request ", s.id, ": ",
                 record.delivered, " rows of ", s.num_wanted_rows());
  if (output.num_tokens == 0) return;
  const auto known = static_cast<int>(s.tokens.size());
  const int chosen = known - output.num_tokens;
  report_.expect(
      position_of(output.row) == chosen - 1 && sampled[static_cast<std::size_t>(output.row)] ==
                                                   s.tokens[static_cast<std::size_t>(chosen)],
      "10", "request ", s.id, ": token ", chosen, " is told with the row of position ",
      position_of(output.row));
  report_.expect(output.num_tokens == 1 || record.request.grammar != 0, "10", "request ", s.id,
                 " gets ", output.num_tokens, " tokens of one row");
  if (output.num_tokens > 1) report_.statistics.forced += output.num_tokens - 1;
}

void Checks::after_commit(const Schedule& schedule, const std::vector<Output>& outputs,
                          const std::vector<std::int32_t>& sampled) {
  std::set<RequestId> seen;
  for (const Output& output : outputs) {
    const Sequence& s = *output.sequence;
    Record& record = record_of(s);
    report_.expect(seen.insert(s.id).second && !record.cancelled, "9", "request ", s.id,
                   " has two outputs, or was cancelled");
    record.before.num_tokens += static_cast<std::size_t>(output.num_tokens);
    check_output(output, sampled);
  }
  for (const auto& record : records_) {
    if (record->sequence == nullptr) continue;
    report_.expect(record->sequence->tokens.size() == record->before.num_tokens, "9", "request ",
                   record->request.id, " got tokens that are in no output");
  }
  for (std::size_t i = 0; i < schedule.spans.size(); ++i) {
    const Span& span = schedule.spans[i];
    const Sequence& s = *span.sequence;
    Record& record = record_of(s);
    const auto output = std::find_if(outputs.begin(), outputs.end(),
                                     [&](const Output& o) { return o.sequence == &s; });
    const bool chooses = span.samples && !s.logits;
    report_.expect(!chooses || output != outputs.end(), "10", "request ", s.id, " gets no output");
    const int told = (output == outputs.end() ? 0 : output->num_wanted_rows) + (chooses ? 1 : 0);
    report_.expect(told == span.rows - span.first_logits, "10", "request ", s.id, ": ",
                   span.rows - span.first_logits, " logits rows, ", told, " of them asked for");
    const int computed = record.scheduled.computed + span.rows;
    report_.expect(s.status == Status::finished || s.computed == computed, "7", "request ", s.id,
                   ": computed ", s.computed, ", expected ", computed);
    const std::vector<std::int32_t>& table = record.scheduled.table;
    const int full = std::min(computed / sizes_.block_tokens, static_cast<int>(table.size()));
    if (record.scheduled.computed / sizes_.block_tokens >= full) continue;
    record.keys.clear();
    for (int b = 0; b < full; ++b) {
      record.keys.push_back(shadow_.key(record.request.salt, s.tokens, b));
      shadow_.fill(table[static_cast<std::size_t>(b)], record.keys.back());
    }
    if (sizes_.share) record.filled = report_.step;
  }
}

}  // namespace mmengine::simulation
