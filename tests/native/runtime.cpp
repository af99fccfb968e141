// Scheduler, KvCache and Batch for pytest, without any model: the test plays the device (Harness),
// or simulation/ does, under random workloads (simulate).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/errors.h"
#include "runtime/batch.h"
#include "runtime/sampler.h"
#include "runtime/scheduler.h"
#include "simulation/simulation.h"

namespace py = pybind11;
using namespace mmengine;

namespace {

py::array_t<std::int32_t> copy(const std::int32_t* data, int count) {
  return py::array_t<std::int32_t>(count, data);
}

py::dict describe(const Sequence& s) {
  py::dict out;
  out["id"] = s.id;
  out["tokens"] = s.tokens;
  out["computed"] = s.computed;
  out["status"] = static_cast<int>(s.status);
  out["slot"] = s.slot;
  out["live"] = s.live;
  out["block_table"] = s.block_table;
  out["preemptions"] = s.preemptions;
  out["cached_tokens"] = s.cached_tokens;
  return out;
}

class Harness {
 public:
  Harness(int num_blocks, int block_tokens, int slots, int max_context, int prefill_chunk,
          int logits_rows, bool share)
      : limits_{prefill_chunk + slots, slots, slots + logits_rows, max_context,
                (max_context + block_tokens - 1) / block_tokens},
        cache_(num_blocks, block_tokens, share),
        scheduler_({limits_, max_context, prefill_chunk}, cache_),
        arena_(allocate()) {}

  void submit(RequestId id, std::vector<std::int32_t> tokens, int max_tokens, int min_tokens,
              std::vector<std::int32_t> stop_ids, bool logits, int prompt_logprobs,
              std::string salt, RequestId same_prompt_as) {
    auto sequence = std::make_unique<Sequence>();
    sequence->id = id;
    sequence->num_prompt_tokens = static_cast<int>(tokens.size());
    sequence->tokens = std::move(tokens);
    sequence->sampling.max_tokens = max_tokens;
    sequence->sampling.min_tokens = min_tokens;
    sequence->stop_ids = std::move(stop_ids);
    sequence->logits = logits;
    sequence->sampling.prompt_logprobs = prompt_logprobs;
    sequence->prefix.salt = std::move(salt);
    sequence->same_prompt_as = same_prompt_as;
    sequences_.push_back(sequence.get());
    scheduler_.submit(std::move(sequence));
  }

  bool end(RequestId id) { return scheduler_.end(id, FinishReason::cancelled) != nullptr; }

  // The arrays of the next batch and the rows of its sample input; None when there is nothing.
  py::object schedule() {
    schedule_ = scheduler_.schedule();
    if (schedule_.empty()) return py::none();
    batch_ = make_batch(schedule_, limits_, slices_.bind(arena_));
    const SampleInput input = make_sample_input(schedule_, lists_);
    const StepInput& b = batch_.input;
    py::dict out;
    out["row_id"] = copy(b.row_id, batch_.rows);
    out["cu_rows"] = copy(b.cu_rows, batch_.sequences + 1);
    out["slot"] = copy(b.slot, batch_.sequences);
    out["start"] = copy(b.start, batch_.sequences);
    out["cu_logits"] = copy(b.cu_logits, batch_.sequences + 1);
    out["logits_row"] = copy(b.logits_row, batch_.logits_rows);
    out["table_update"] = copy(b.table_update, 3 * batch_.table_updates);
    out["copy"] = copy(b.copy, 2 * batch_.copies);
    py::list bans, given, ids;
    for (int e = 0; e < batch_.logits_rows; ++e) {
      const SampleRow& row = input.row[e];
      given.append(row.given);
      bans.append(std::vector<std::int32_t>(input.ban + row.ban_begin, input.ban + row.ban_end));
    }
    for (const Span& span : schedule_.spans) ids.append(span.sequence->id);
    out["bans"] = bans;
    out["given"] = given;
    out["ids"] = ids;
    return out;
  }

  // Sampled ids, one a logits row -> (id, tokens added, logits rows, finish) of each output.
  py::list commit(std::vector<std::int32_t> sampled) {
    StepResult result;
    result.out.id = sampled.data();
    result.cu_logits = batch_.input.cu_logits;
    py::list outputs;
    for (const Output& o : scheduler_.commit(schedule_, result)) {
      outputs.append(py::make_tuple(o.sequence->id, o.num_tokens, o.num_wanted_rows,
                                    static_cast<int>(o.sequence->finish)));
    }
    return outputs;
  }

  py::list sequences() const {
    py::list all;
    for (const Sequence* s : sequences_) all.append(describe(*s));
    return all;
  }

  void reap() {
    std::erase_if(sequences_, [](const Sequence* s) { return s->status == Status::finished; });
    scheduler_.reap();
  }

  bool idle() const { return scheduler_.idle(); }
  std::int64_t preemptions() const { return scheduler_.preemptions(); }
  py::tuple blocks() const {
    return py::make_tuple(cache_.free_blocks(), cache_.used_blocks(), cache_.cached_blocks(),
                          cache_.total_blocks());
  }

 private:
  Buffer allocate() {
    Layout layout;
    slices_ = StepInputSlices::plan(limits_, layout);
    return allocate_host(layout.bytes());
  }

  StepLimits limits_;
  KvCache cache_;
  Scheduler scheduler_;
  StepInputSlices slices_;
  Arena arena_;
  std::vector<const Sequence*> sequences_;
  Schedule schedule_;
  Batch batch_;
  SampleLists lists_;
};

// Workloads with seeds [first, first + count) -> what they reached, the violations of rules and, if
// asked for, a line a step.
py::dict simulate(std::uint64_t first, int count, bool trace) {
  simulation::Outcome outcome;
  {
    const py::gil_scoped_release release;
    outcome = simulation::simulate(first, count, trace, 20);
  }
  py::list violations;
  for (const simulation::Violation& v : outcome.violations) {
    py::dict one;
    one["seed"] = v.seed;
    one["step"] = v.step;
    one["rule"] = v.rule;
    one["what"] = v.what;
    violations.append(one);
  }
  py::dict reached;
  for (const auto& [name, number] : outcome.statistics.list()) reached[name] = number;
  py::dict out;
  out["reached"] = reached;
  out["violations"] = violations;
  out["trace"] = outcome.trace;
  return out;
}

py::dict rules() {
  py::dict all;
  for (const simulation::Rule& rule : simulation::kRules) all[rule.name] = rule.what;
  return all;
}

}  // namespace

PYBIND11_MODULE(MM_MODULE, m) {
  register_errors(m);
  m.def("simulate", &simulate, py::arg("first"), py::arg("count"), py::kw_only(),
        py::arg("trace") = false);
  m.def("rules", &rules);
  py::class_<Harness>(m, "Harness")
      .def(py::init<int, int, int, int, int, int, bool>(), py::kw_only(), py::arg("num_blocks"),
           py::arg("block_tokens"), py::arg("slots"), py::arg("max_context"),
           py::arg("prefill_chunk"), py::arg("logits_rows") = 4, py::arg("share") = true)
      .def("submit", &Harness::submit, py::arg("id"), py::arg("tokens"), py::kw_only(),
           py::arg("max_tokens") = -1, py::arg("min_tokens") = 0,
           py::arg("stop_ids") = std::vector<std::int32_t>{}, py::arg("logits") = false,
           py::arg("prompt_logprobs") = -1, py::arg("salt") = "", py::arg("same_prompt_as") = 0)
      .def("end", &Harness::end)
      .def("schedule", &Harness::schedule)
      .def("commit", &Harness::commit)
      .def("sequences", &Harness::sequences)
      .def("reap", &Harness::reap)
      .def("idle", &Harness::idle)
      .def("preemptions", &Harness::preemptions)
      .def("blocks", &Harness::blocks);
}
