#include "runtime/sampler.h"

namespace mmengine {

SampleOutputSlices SampleOutputSlices::plan(const StepLimits& limits, Layout& layout) {
  const std::int64_t rows = limits.logits_rows;
  SampleOutputSlices s;
  s.id = layout.add("sample.id", DType::i32, {rows});
  s.logprob = layout.add("sample.logprob", DType::f32, {rows});
  s.top_id = layout.add("sample.top_id", DType::i32, {rows, kMaxLogprobs});
  s.top_logprob = layout.add("sample.top_logprob", DType::f32, {rows, kMaxLogprobs});
  return s;
}

SampleOutput SampleOutputSlices::bind(const Arena& arena) const {
  return {arena[id].as<std::int32_t>(), arena[logprob].as<float>(),
          arena[top_id].as<std::int32_t>(), arena[top_logprob].as<float>()};
}

namespace {

template <class T>
std::int32_t size_of(const std::vector<T>& list) {
  return static_cast<std::int32_t>(list.size());
}

SampleRow make_row(const Sequence& sequence, SampleLists& lists) {
  const SamplingParams& params = sequence.sampling;
  SampleRow row;
  row.temperature = params.temperature;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.top_k = params.top_k;
  row.repetition_penalty = params.repetition_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.presence_penalty = params.presence_penalty;
  row.logprobs = params.logprobs;
  row.seed = sequence.seed;
  row.bias_begin = size_of(lists.bias);
  for (const auto& [token, bias] : params.logit_bias) lists.bias.push_back({token, bias});
  row.bias_end = size_of(lists.bias);
  row.count_begin = size_of(lists.count);
  const std::vector<TokenCount>& counts = sequence.counts.list();
  lists.count.insert(lists.count.end(), counts.begin(), counts.end());
  row.count_end = size_of(lists.count);
  row.ban_begin = row.ban_end = size_of(lists.ban);
  if (const Constraint* constraint = sequence.constraint.get()) {
    if (constraint->next() == Constraint::Next::given) row.given = constraint->forced_token();
    if (constraint->next() == Constraint::Next::masked) {  // without what is banned
      row.mask_begin = static_cast<std::int64_t>(lists.mask.size());
      lists.mask.insert(lists.mask.end(), constraint->mask().begin(), constraint->mask().end());
    }
  } else if (sequence.bans_stops()) {
    lists.ban.insert(lists.ban.end(), sequence.stop_ids.begin(), sequence.stop_ids.end());
  }
  row.ban_end = size_of(lists.ban);
  return row;
}

// Only scores the token that follows the one at `position`.
SampleRow make_prompt_row(const Sequence& sequence, int position) {
  SampleRow row;
  row.given = sequence.tokens[static_cast<std::size_t>(position) + 1];
  row.logprobs = sequence.sampling.prompt_logprobs;
  return row;
}

}  // namespace

SampleInput make_sample_input(const Schedule& schedule, SampleLists& lists) {
  lists.rows.clear();
  lists.ban.clear();
  lists.bias.clear();
  lists.count.clear();
  lists.mask.clear();
  for (const Span& span : schedule.spans) {
    const Sequence& sequence = *span.sequence;
    for (int i = span.first_logits; i < span.rows; ++i) {
      if (sequence.logits) {
        lists.rows.push_back({});
      } else if (span.samples && i == span.rows - 1) {
        lists.rows.push_back(make_row(sequence, lists));
      } else {
        lists.rows.push_back(make_prompt_row(sequence, span.start + i));
      }
    }
  }
  return {lists.rows.data(), lists.ban.data(), lists.bias.data(), lists.count.data(),
          lists.mask.data()};
}

}  // namespace mmengine
