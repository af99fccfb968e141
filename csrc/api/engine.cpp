// Engine: the only file that sees both halves of the runtime. A step is take the inbox, schedule,
// compute, sample, commit, publish. The inbox is what other threads wrote since the last step.
#include "mmengine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "api/load.h"
#include "api/waiting_list.h"
#include "base/check.h"
#include "runtime/mask_worker.h"
#include "runtime/model_runner.h"
#include "runtime/scheduler.h"

namespace mmengine {
namespace {

using Clock = std::chrono::steady_clock;

// One round of splitmix64: spreads the seeds of requests that were given none.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class Lap {  // seconds since it was asked last
 public:
  double seconds() {
    const Clock::time_point before = std::exchange(last_, Clock::now());
    return std::chrono::duration<double>(last_ - before).count();
  }

 private:
  Clock::time_point last_ = Clock::now();
};

Usage usage_of(const Sequence& sequence) {
  return {sequence.num_prompt_tokens, sequence.num_generated(), sequence.cached_tokens};
}

// Row `row` of a step: the chosen token, then the likeliest.
void append_logprobs(const SampleOutput& out, int row, int alternatives,
                     std::vector<TokenLogprob>& to) {
  to.push_back({out.id[row], out.logprob[row]});
  const std::ptrdiff_t top = static_cast<std::ptrdiff_t>(row) * kMaxLogprobs;
  for (int i = 0; i < alternatives; ++i) {
    to.push_back({out.top_id[top + i], out.top_logprob[top + i]});
  }
}

std::uint64_t system_seed() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32) | device();
}

}  // namespace

struct Engine::Impl {
  explicit Impl(LoadedModel loaded)
      : info(std::move(loaded.info)),
        memory(std::move(loaded.memory)),
        description(std::move(loaded.description)),
        threads(loaded.threads),
        base_seed(loaded.seed ? *loaded.seed : system_seed()),
        limits(loaded.plan.limits),
        cache(loaded.plan.num_blocks, loaded.plan.kv.block_tokens, loaded.prefix_cache),
        scheduler({limits, limits.context_tokens, loaded.plan.prefill_chunk}, cache),
        runner(std::make_unique<ModelRunner>(loaded.plan, std::move(loaded.rank))),
        waiting(loaded.max_waiting, loaded.max_waiting_tokens) {
    snapshot();
  }

  struct Ending {
    RequestId id;
    FinishReason reason;
  };

  bool step(const Sink& sink);
  void take_inbox(const Sink& sink);
  std::vector<Output> compute(const StepResult*& result);
  void begun(const Schedule& schedule);         // their room in the queue is free
  void end(RequestId id, FinishReason reason);  // at the next step
  void check_alive();                           // Error{engine_dead}
  void die(const std::string& cause);
  void free();  // the model, and the requests with all that their hosts gave them; after die
  double measure(double (Backend::*probe)());  // between steps, checked
  void publish(const Output& output, const StepResult& result, const Sink& sink);
  void publish_end(const Sequence& sequence, const Sink& sink);
  void snapshot();

  ModelInfo info;
  MemoryPlan memory;
  std::string description;
  int threads;
  std::uint64_t base_seed;
  StepLimits limits;
  const pid_t process = ::getpid();

  std::mutex step_mutex;                 // held by the thread that steps or closes
  std::atomic<std::thread::id> stepper;  // who is inside a step
  bool closes = false;                   // by the stepper: at the end of its step
  KvCache cache;
  Scheduler scheduler;
  std::unique_ptr<ModelRunner> runner;
  MaskWorker masks;
  SampleLists lists;
  std::vector<TokenLogprob> logprobs, prompt_logprobs;
  std::int64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, kv_saturated = 0;
  double seconds_scheduling = 0, seconds_computing = 0;

  mutable std::mutex inbox_mutex;  // guards what follows; never held while computing
  std::vector<std::unique_ptr<Sequence>> submitted;
  WaitingList waiting;
  std::vector<Ending> endings;
  std::multimap<Clock::time_point, RequestId> deadlines;  // of ended requests, too
  RequestId next_id = 1;
  EngineStats stats;
  std::string death;  // why no further work is taken
  std::atomic<bool> dead = false;
};

// ---- a step --------------------------------------------------------------------------------

bool Engine::Impl::step(const Sink& told) {
  // What a sink throws is thrown on when all that this step found is published.
  std::exception_ptr failure;
  const Sink sink = [&](const StepOutput& out) {
    try {
      told(out);
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  };
  take_inbox(sink);
  const StepResult* result = nullptr;
  std::vector<Output> outputs;
  try {
    outputs = compute(result);
  } catch (const std::exception& error) {  // the state may be torn: no further work
    die(error.what());
    throw Error(ErrorCode::engine_dead, "engine", error.what(), {.reason = "failed"});
  }
  for (const Output& output : outputs) publish(output, *result, sink);
  scheduler.reap();
  snapshot();
  if (failure) std::rethrow_exception(failure);
  if (dead) return false;  // the sink closed the engine
  const std::lock_guard lock(inbox_mutex);
  return !scheduler.idle() || !submitted.empty() || !endings.empty();
}

void Engine::Impl::die(const std::string& cause) {
  const std::lock_guard lock(inbox_mutex);
  if (death.empty()) death = cause;
  dead = true;
}

void Engine::Impl::check_alive() {
  if (!dead) return;
  const std::lock_guard lock(inbox_mutex);
  fail(ErrorCode::engine_dead, "engine", death);
}

double Engine::Impl::measure(double (Backend::*probe)()) {
  const std::unique_lock stepping(step_mutex, std::try_to_lock);
  if (!stepping) fail(ErrorCode::usage, "engine", "measured while another thread steps");
  check_alive();  // closed in the meantime
  return (runner->backend().*probe)();
}

void Engine::Impl::free() {
  runner.reset();
  scheduler.clear();
  std::vector<std::unique_ptr<Sequence>> dropped;  // outside of the lock
  const std::lock_guard lock(inbox_mutex);
  dropped.swap(submitted);
}

void Engine::Impl::take_inbox(const Sink& sink) {
  std::vector<std::unique_ptr<Sequence>> arrived;
  std::vector<Ending> ended;
  {
    const std::lock_guard lock(inbox_mutex);
    arrived.swap(submitted);
    stats.requests_waiting += static_cast<int>(arrived.size());
    ended.swap(endings);
    const auto past = deadlines.upper_bound(Clock::now());
    for (auto d = deadlines.begin(); d != past; ++d) {
      ended.push_back({d->second, FinishReason::cancelled});
      waiting.leave(d->second);
    }
    deadlines.erase(deadlines.begin(), past);
  }
  for (auto& sequence : arrived) {
    prompt_tokens += sequence->num_prompt_tokens;
    scheduler.submit(std::move(sequence));
  }
  for (const Ending& ending : ended) {
    if (const Sequence* sequence = scheduler.end(ending.id, ending.reason)) {
      publish_end(*sequence, sink);
    }
  }
}

std::vector<Output> Engine::Impl::compute(const StepResult*& result) {
  Lap lap;
  const Schedule schedule = scheduler.schedule();
  if (schedule.empty()) {
    const SchedulerCounts now = scheduler.counts();
    MM_CHECK(now.waiting + now.running == 0, "scheduler", "requests wait and none can be computed");
    return {};
  }
  begun(schedule);
  const bool with_logits = std::any_of(schedule.spans.begin(), schedule.spans.end(),
                                       [](const Span& span) { return span.sequence->logits; });
  const Batch batch = make_batch(schedule, limits, runner->step_input());
  masks.start(schedule);
  seconds_scheduling += lap.seconds();
  try {
    runner->enqueue(batch);
  } catch (...) {
    masks.wait();
    throw;
  }
  seconds_computing += lap.seconds();
  masks.wait();
  const SampleInput input = make_sample_input(schedule, lists);
  seconds_scheduling += lap.seconds();
  runner->sample(input);
  result = &runner->collect(with_logits);
  seconds_computing += lap.seconds();
  kv_saturated = result->kv_saturated;
  std::vector<Output> outputs = scheduler.commit(schedule, *result);
  ++steps;
  for (const Output& output : outputs) generated_tokens += output.num_tokens;
  seconds_scheduling += lap.seconds();
  return outputs;
}

void Engine::Impl::publish(const Output& output, const StepResult& result, const Sink& sink) {
  const Sequence& sequence = *output.sequence;
  StepOutput out;
  out.id = sequence.id;
  out.finish = sequence.finish;
  out.error = sequence.error;
  out.usage = usage_of(sequence);
  if (output.num_tokens > 0) {
    out.num_tokens = static_cast<std::size_t>(output.num_tokens);
    out.token_ids = sequence.tokens.data() + sequence.tokens.size() - out.num_tokens;
    const int alternatives = sequence.sampling.logprobs;
    if (alternatives >= 0) {
      logprobs.clear();
      append_logprobs(result.out, output.row, alternatives, logprobs);
      out.logprobs = logprobs.data();
      out.num_logprobs = logprobs.size();
    }
  }
  const auto wanted = static_cast<std::size_t>(output.num_wanted_rows);
  if (wanted > 0 && sequence.logits) {
    out.logits = result.logits + output.first_logits * info.vocab_size;
    out.num_logits_rows = wanted;
  } else if (wanted > 0) {
    const int alternatives = sequence.sampling.prompt_logprobs;
    prompt_logprobs.clear();
    for (int i = 0; i < output.num_wanted_rows; ++i) {
      append_logprobs(result.out, output.first_logits + i, alternatives, prompt_logprobs);
    }
    out.prompt_logprobs = prompt_logprobs.data();
    out.num_prompt_rows = wanted;
    out.num_prompt_logprobs = static_cast<std::size_t>(alternatives) + 1;
  }
  sink(out);
}

void Engine::Impl::publish_end(const Sequence& sequence, const Sink& sink) {
  StepOutput out;
  out.id = sequence.id;
  out.finish = sequence.finish;
  out.usage = usage_of(sequence);
  sink(out);
}

void Engine::Impl::begun(const Schedule& schedule) {
  const std::lock_guard lock(inbox_mutex);
  for (const Span& span : schedule.spans) waiting.leave(span.sequence->id);
}

void Engine::Impl::end(RequestId id, FinishReason reason) {
  const std::lock_guard lock(inbox_mutex);
  endings.push_back({id, reason});
  waiting.leave(id);
}

void Engine::Impl::snapshot() {
  EngineStats now;
  now.steps = steps;
  now.prompt_tokens = prompt_tokens;
  now.generated_tokens = generated_tokens;
  now.cached_tokens = scheduler.cached_tokens();
  now.preemptions = scheduler.preemptions();
  now.kv_blocks_total = cache.total_blocks();
  now.kv_blocks_free = cache.free_blocks();
  now.kv_blocks_used = cache.used_blocks();
  now.kv_blocks_cached = cache.cached_blocks();
  now.kv_saturated = kv_saturated;
  now.seconds_scheduling = seconds_scheduling;
  now.seconds_computing = seconds_computing;
  const SchedulerCounts count = scheduler.counts();
  now.requests_running = count.running;
  now.requests_waiting = count.waiting;
  const std::lock_guard lock(inbox_mutex);
  stats = now;
}

// ---- the public face -----------------------------------------------------------------------

Engine Engine::load(const std::string& directory, const EngineOptions& options) {
  return Engine(std::make_unique<Impl>(load_model(directory, options)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::Engine(Engine&&) noexcept = default;

Engine& Engine::operator=(Engine&& other) noexcept {
  const Engine replaced(std::exchange(impl_, std::move(other.impl_)));
  return *this;
}

Engine::~Engine() {
  // In a forked child the pool's threads do not exist: joining them would wait for ever.
  if (impl_ && impl_->process != ::getpid()) static_cast<void>(impl_.release());
}

Engine::Impl& Engine::live() const {
  if (!impl_) fail(ErrorCode::engine_dead, "engine", "it was moved from");
  if (impl_->process != ::getpid()) {
    fail(ErrorCode::fork, "engine",
         "it was loaded before fork() and cannot be used in the child process; load it there, or "
         "start the process with the \"spawn\" method");
  }
  impl_->check_alive();
  return *impl_;
}

RequestId Engine::submit(Request request) {
  Impl& impl = live();
  validate_request(request, impl.info, impl.limits.context_tokens);
  auto sequence = std::make_unique<Sequence>();
  sequence->tokens = std::move(request.token_ids);
  sequence->num_prompt_tokens = static_cast<int>(sequence->tokens.size());
  sequence->prefix.salt = std::move(request.cache_salt);
  sequence->logits = request.logits;
  sequence->same_prompt_as = request.same_prompt_as;
  sequence->sampling = std::move(request.sampling);
  sequence->stop_ids = sequence->sampling.stop_token_ids;
  if (!sequence->sampling.ignore_eos) {
    sequence->stop_ids.insert(sequence->stop_ids.end(), impl.info.eos_ids.begin(),
                              impl.info.eos_ids.end());
  }
  sequence->count_prompt();
  if (request.constraint) {
    sequence->constraint =
        std::make_unique<Constraint>(std::move(request.constraint), impl.info.vocab_size);
  }
  const std::lock_guard lock(impl.inbox_mutex);
  if (request.same_prompt_as >= impl.next_id) {
    throw Error(ErrorCode::request, "same_prompt_as",
                str("expected a request submitted before, got ", request.same_prompt_as),
                {.reason = "out_of_range", .param = "same_prompt_as"});
  }
  impl.waiting.check(sequence->num_prompt_tokens);
  sequence->id = impl.next_id++;
  sequence->seed = sequence->sampling.seed.value_or(mix(impl.base_seed ^ mix(sequence->id)));
  const RequestId id = sequence->id;
  if (request.deadline_s > 0) {
    const std::chrono::duration<double> time(request.deadline_s);
    impl.deadlines.emplace(Clock::now() + std::chrono::duration_cast<Clock::duration>(time), id);
  }
  impl.waiting.enter(id, sequence->num_prompt_tokens);
  impl.submitted.push_back(std::move(sequence));
  return id;
}

void Engine::cancel(RequestId id) { live().end(id, FinishReason::cancelled); }
void Engine::finish(RequestId id) { live().end(id, FinishReason::stop); }

bool Engine::step(const Sink& sink) {
  Impl& impl = live();
  const std::unique_lock stepping(impl.step_mutex, std::try_to_lock);
  if (!stepping) fail(ErrorCode::usage, "engine", "step is called while another thread steps");
  if (impl.dead) live();  // closed in the meantime
  struct Stepping {
    Impl& impl;
    explicit Stepping(Impl& i) : impl(i) { impl.stepper = std::this_thread::get_id(); }
    ~Stepping() {
      impl.stepper = std::thread::id();
      if (impl.closes) impl.free();
    }
  } const inside(impl);
  return impl.step(sink);
}

void Engine::run(const Sink& sink) {
  while (step(sink)) {
  }
}

EngineStats Engine::stats() const {
  Impl& impl = live();
  const std::lock_guard lock(impl.inbox_mutex);
  EngineStats stats = impl.stats;
  stats.requests_waiting += static_cast<int>(impl.submitted.size());
  return stats;
}

const MemoryPlan& Engine::plan() const { return live().memory; }
const ModelInfo& Engine::info() const { return live().info; }
std::string Engine::description() const { return live().description; }
int Engine::threads() const { return live().threads; }

double Engine::measure_read_bandwidth() { return live().measure(&Backend::measure_read_bandwidth); }
double Engine::measure_multiply_peak() { return live().measure(&Backend::measure_multiply_peak); }
double Engine::measure_int8_peak() { return live().measure(&Backend::measure_int8_peak); }

void Engine::close() {
  if (!impl_ || impl_->process != ::getpid()) return;
  impl_->die("it was closed");
  if (impl_->stepper == std::this_thread::get_id()) {  // in a sink
    impl_->closes = true;
    return;
  }
  const std::lock_guard stepping(impl_->step_mutex);  // waits for the step that runs
  impl_->free();
}

}  // namespace mmengine
