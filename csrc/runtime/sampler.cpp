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

SampleInput make_sample_input(const Schedule& schedule, SampleLists& lists) {
  lists.rows.clear();
  lists.ban.clear();
  for (const Span& span : schedule.spans) {
    const Sequence& sequence = *span.sequence;
    const SamplingParams& params = sequence.sampling;
    for (int i = span.first_logits; i < span.rows; ++i) {
      SampleRow row;
      if (!sequence.logits) {
        row.temperature = params.temperature;
        row.top_p = params.top_p;
        row.min_p = params.min_p;
        row.top_k = params.top_k;
        row.logprobs = params.logprobs;
        row.seed = sequence.seed;
        row.ban_begin = static_cast<std::int32_t>(lists.ban.size());
        if (sequence.bans_stops()) {
          lists.ban.insert(lists.ban.end(), sequence.stop_ids.begin(), sequence.stop_ids.end());
        }
        row.ban_end = static_cast<std::int32_t>(lists.ban.size());
      }
      lists.rows.push_back(row);
    }
  }
  return {lists.rows.data(), lists.ban.data()};
}

}  // namespace mmengine
