#include "simulation/simulation.h"

#include <string>

#include "base/check.h"
#include "simulation/checks.h"

namespace mmengine::simulation {
namespace {

std::string listed(const std::vector<std::int32_t>& numbers) {
  std::string text = "[";
  for (const std::int32_t number : numbers) {
    text += (text.size() > 1 ? " " : "") + std::to_string(number);
  }
  return text + "]";
}

std::unique_ptr<Sequence> sequence_of(const Request& request) {
  auto s = std::make_unique<Sequence>();
  s->id = request.id;
  s->sampling = request.sampling;
  s->seed = request.seed;
  s->same_prompt_as = request.same_prompt_as;
  s->logits = request.logits;
  s->stop_ids = request.stop_ids;
  s->tokens = request.prompt;
  s->num_prompt_tokens = static_cast<int>(request.prompt.size());
  s->prefix.salt = request.salt;
  s->count_prompt();
  if (request.grammar != 0) {
    s->constraint = std::make_unique<Constraint>(
        std::make_unique<Grammar>(request.grammar, request.fails_at), kVocab);
  }
  return s;
}

class Simulation {
 public:
  Simulation(std::uint64_t seed, Report& report)
      : report_(report),
        workload_(seed),
        cache_(sizes().num_blocks, sizes().block_tokens, sizes().share),
        scheduler_({sizes().limits, sizes().max_context, sizes().prefill_chunk}, cache_),
        device_(sizes().limits, sizes().num_blocks, sizes().block_tokens),
        checks_(sizes(), cache_, scheduler_, device_, report) {
    Layout layout;
    const StepInputSlices slices = StepInputSlices::plan(sizes().limits, layout);
    arena_ = Arena(allocate_host(layout.bytes()));
    input_ = slices.bind(arena_);
  }

  void run() {
    constexpr int kTooLong = 10000;  // steps; the longest workload needs less than a tenth
    report_.trace(sizes().num_blocks, " blocks of ", sizes().block_tokens, " tokens, ",
                  sizes().slots, " slots, context ", sizes().max_context, ", chunk ",
                  sizes().prefill_chunk, ", ", sizes().limits.logits_rows, " logits rows",
                  sizes().share ? ", sharing" : "");
    while (sound() && !(workload_.exhausted() && scheduler_.idle())) {
      ++report_.step;
      arrivals();
      cancellations();
      if (sound()) step();
      report_.expect(report_.step < kTooLong, "fairness", "the workload does not end");
    }
    if (sound()) checks_.when_idle();
    report_.statistics.steps = report_.step;
  }

  bool unfinished() const {
    const SchedulerCounts counts = scheduler_.counts();
    return counts.waiting + counts.running > 0;
  }
  Hash digest() const { return digest_; }

 private:
  const Sizes& sizes() const { return workload_.sizes(); }
  bool sound() const { return report_.violations.empty(); }

  void arrivals() {
    for (const Request& request : workload_.arrivals()) {
      const SamplingParams& p = request.sampling;
      report_.trace("request ", request.id, " ", listed(request.prompt), ", ", p.min_tokens, " to ",
                    p.max_tokens, " tokens, stops ", listed(request.stop_ids),
                    request.logits ? ", logits" : "",
                    p.prompt_logprobs >= 0 ? ", prompt_logprobs" : "",
                    request.grammar != 0 ? ", rules" : "", ", salt '", request.salt,
                    "', prompt of ", request.same_prompt_as);
      std::unique_ptr<Sequence> sequence = sequence_of(request);
      checks_.submitted(request, sequence.get());
      scheduler_.submit(std::move(sequence));
    }
  }

  void cancellations() {
    const int victim = workload_.victim(static_cast<int>(checks_.records().size()));
    if (victim < 0) return;
    Record& record = *checks_.records()[static_cast<std::size_t>(victim)];
    const bool unfinished = record.unfinished();
    report_.trace("cancel ", record.request.id, unfinished ? "" : ", which is finished");
    const Sequence* ended = scheduler_.end(record.request.id, FinishReason::cancelled);
    checks_.ended(record, unfinished, ended != nullptr);
  }

  void step() {
    checks_.before_schedule();
    const Schedule schedule = scheduler_.schedule();
    trace(schedule);
    checks_.after_schedule(schedule);
    const bool computed = sound() && !schedule.empty() && compute(schedule);
    report_.expect(!schedule.empty() || !unfinished(), "fairness",
                   "requests wait and none can be computed");
    if (!sound() && !computed) return;
    remember();
    checks_.before_reap();
    if (!sound()) return;
    scheduler_.reap();
  }

  // False: a rule is broken before anything was computed.
  bool compute(const Schedule& schedule) {
    const Batch batch = make_batch(schedule, sizes().limits, input_);
    device_.begin(batch);
    checks_.after_begin(schedule, batch);
    if (!sound()) return false;  // what is broken may write anywhere
    device_.copy_blocks(batch);
    device_.forward();
    prepare(schedule);
    const SampleInput input = make_sample_input(schedule, lists_);
    checks_.after_sample_input(schedule, input);
    const std::vector<std::int32_t>& sampled = device_.sample(input);
    report_.trace("sampled ", listed(sampled));
    std::vector<std::int32_t> ids = sampled;
    StepResult result;
    result.out.id = ids.data();
    result.cu_logits = batch.input.cu_logits;
    const std::vector<Output> outputs = scheduler_.commit(schedule, result);
    checks_.after_commit(schedule, outputs, sampled);
    fold(batch, ids);
    return true;
  }

  // What the MaskWorker does.
  void prepare(const Schedule& schedule) {
    for (const Span& span : schedule.spans) {
      Sequence& s = *span.sequence;
      if (!span.samples || !s.constraint) continue;
      s.constraint->prepare(s.bans_stops() ? s.stop_ids : std::vector<std::int32_t>{});
    }
  }

  // Answers, finished or cut short, are what later prompts go on after.
  void remember() {
    for (const auto& record : checks_.records()) {
      if (record->sequence == nullptr || record->sequence->status != Status::finished) continue;
      report_.trace("request ", record->request.id, " ends for reason ",
                    static_cast<int>(record->sequence->finish), ": ",
                    listed(record->sequence->tokens));
      workload_.remember(record->sequence->tokens);
    }
  }

  void fold(const Batch& batch, const std::vector<std::int32_t>& ids) {
    const auto add = [&](const std::int32_t* numbers, int count) {
      for (int i = 0; i < count; ++i) digest_ = mix(digest_, static_cast<Hash>(numbers[i]));
    };
    add(batch.input.row_id, batch.rows);
    add(batch.input.cu_rows, batch.sequences + 1);
    add(batch.input.slot, batch.sequences);
    add(batch.input.start, batch.sequences);
    add(batch.input.logits_row, batch.logits_rows);
    add(batch.input.table_update, 3 * batch.table_updates);
    add(batch.input.copy, 2 * batch.copies);
    add(ids.data(), static_cast<int>(ids.size()));
  }

  void trace(const Schedule& schedule) {
    if (!report_.tracing()) return;
    for (const Span& span : schedule.spans) {
      const Sequence& s = *span.sequence;
      report_.trace("rows of ", s.id, ": ", span.rows, " from ", span.start, ", logits from ",
                    span.first_logits, ", slot ", s.slot, ", computed ", s.computed, " of ",
                    s.tokens.size(), ", blocks ", listed(s.block_table));
    }
    for (const BlockCopy& copy : schedule.copies) {
      report_.trace("copy of block ", copy.source, " to ", copy.target);
    }
    report_.trace(cache_.free_blocks(), " blocks free, ", cache_.cached_blocks(), " cached, ",
                  scheduler_.preemptions(), " preemptions");
  }

  Report& report_;
  Workload workload_;
  KvCache cache_;
  Scheduler scheduler_;
  Device device_;
  Checks checks_;
  Arena arena_;
  StepInput input_;
  SampleLists lists_;
  Hash digest_ = 0;
};

Hash run(std::uint64_t seed, Report& report) {
  try {
    Simulation simulation(seed, report);
    simulation.run();
    return simulation.digest();
  } catch (const Error& error) {
    report.violation("core", error.what());
    return 0;
  }
}

}  // namespace

Report simulate(std::uint64_t seed, bool tracing) {
  Report report(seed, tracing);
  const Hash digest = run(seed, report);
  if (!report.violations.empty()) return report;
  Report again(seed, false);
  const Hash second = run(seed, again);
  report.expect(second == digest, "16", "a second run did something else");
  return report;
}

Outcome simulate(std::uint64_t first, int count, bool tracing, std::size_t most) {
  Outcome outcome;
  for (int i = 0; i < count && outcome.violations.size() < most; ++i) {
    Report report = simulate(first + static_cast<std::uint64_t>(i), tracing);
    report.statistics.workloads = 1;
    outcome.statistics += report.statistics;
    outcome.violations.insert(outcome.violations.end(), report.violations.begin(),
                              report.violations.end());
    outcome.trace.insert(outcome.trace.end(), report.lines.begin(), report.lines.end());
  }
  return outcome;
}

}  // namespace mmengine::simulation
