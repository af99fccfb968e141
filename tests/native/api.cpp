// What only a host in C++ can do to an engine, for pytest: each function loads `directory`, does it
// and says how it went.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/errors.h"
#include "mmengine/mmengine.h"

namespace py = pybind11;
using namespace mmengine;

namespace {

Engine load(const std::string& directory) {
  EngineOptions options;
  options.device = "cpu";
  options.threads = 2;
  return Engine::load(directory, options);
}

Request request_of(int max_tokens) {
  Request request;
  request.token_ids = {1, 2, 3, 4, 5};
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

class Throws : public TokenConstraint {  // what is no std::exception, in the method named
 public:
  explicit Throws(std::string where) : where_(std::move(where)) {}
  void mask(std::uint32_t* bits, std::size_t num_words) override {
    if (where_ == "mask") throw 42;
    std::fill_n(bits, num_words, ~0u);
  }
  bool accept(std::int32_t) override {
    if (where_ == "accept") throw 42;
    return true;
  }
  void rollback(int) override {}
  std::unique_ptr<TokenConstraint> clone() const override {
    return std::make_unique<Throws>(where_);
  }
  std::vector<std::int32_t> forced() override {
    if (where_ == "forced") throw 42;
    return {};
  }

 private:
  std::string where_;
};

// (error of the request whose rules throw, tokens of the one beside it)
std::pair<std::string, int> rules_throw(const std::string& directory, const std::string& where) {
  Engine engine = load(directory);
  Request bad = request_of(6);
  bad.constraint = std::make_unique<Throws>(where);
  const RequestId id = engine.submit(std::move(bad));
  engine.submit(request_of(6));
  std::string error;
  int beside = 0;
  engine.run([&](const StepOutput& out) {
    if (out.id != id) beside += static_cast<int>(out.num_tokens);
    if (out.finish == FinishReason::error) error = out.error;
  });
  return {error, beside};
}

// Tokens of each of three requests, when the sink throws at every fourth output and the host steps
// on.
std::map<RequestId, int> sink_throws(const std::string& directory) {
  Engine engine = load(directory);
  for (int i = 0; i < 3; ++i) engine.submit(request_of(6));
  std::map<RequestId, int> tokens;
  int outputs = 0;
  bool more = true;
  while (more) {
    try {
      more = engine.step([&](const StepOutput& out) {
        tokens[out.id] += static_cast<int>(out.num_tokens);
        if (++outputs % 4 == 0) throw std::runtime_error("the sink's");
      });
    } catch (const std::runtime_error&) {
    }
  }
  return tokens;
}

// The code of the error that a step after it meets.
int sink_closes(const std::string& directory) {
  Engine engine = load(directory);
  engine.submit(request_of(50));
  engine.run([&](const StepOutput&) { engine.close(); });
  try {
    engine.step([](const StepOutput&) {});
  } catch (const Error& error) {
    return static_cast<int>(error.code());
  }
  return -1;
}

// The exit code of a forked child that puts an engine of its own in the place of its parent's.
int replaced_in_a_child(const std::string& directory) {
  Engine engine = load(directory);
  const pid_t child = ::fork();
  if (child == 0) {
    engine = load(directory);
    int tokens = 0;
    engine.submit(request_of(3));
    engine.run([&](const StepOutput& out) { tokens += static_cast<int>(out.num_tokens); });
    std::_Exit(tokens);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct Answer {
  std::vector<std::int32_t> ids;
  std::vector<float> logprobs;  // of ids
};

// Greedy answers to all prompts at once.
std::vector<Answer> answers(const std::string& directory, const std::string& device,
                            const std::vector<std::vector<std::int32_t>>& prompts, int max_tokens,
                            int max_batch, int prefill_chunk, const std::string& kv_dtype) {
  EngineOptions options;
  options.device = device;
  options.threads = 2;
  options.max_batch = max_batch;
  options.prefill_chunk = prefill_chunk;
  options.kv_dtype = kv_dtype == "fp8"    ? KvDtype::fp8
                     : kv_dtype == "bf16" ? KvDtype::bf16
                                          : KvDtype::automatic;
  Engine engine = Engine::load(directory, options);
  std::vector<Answer> found(prompts.size());
  std::map<RequestId, std::size_t> index;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Request request = request_of(max_tokens);
    request.token_ids = prompts[i];
    request.sampling.logprobs = 0;
    index[engine.submit(std::move(request))] = i;
  }
  engine.run([&](const StepOutput& out) {
    Answer& answer = found[index.at(out.id)];
    for (std::size_t t = 0; t < out.num_tokens; ++t) {
      answer.ids.push_back(out.token_ids[t]);
      answer.logprobs.push_back(out.logprobs[t * out.num_logprobs].logprob);
    }
    if (!out.error.empty()) throw std::runtime_error(out.error);
  });
  return found;
}

}  // namespace

PYBIND11_MODULE(MM_MODULE, m) {
  register_errors(m);
  m.def("rules_throw", &rules_throw);
  m.def("sink_throws", &sink_throws);
  m.def("sink_closes", &sink_closes);
  m.def("replaced_in_a_child", &replaced_in_a_child);
  py::class_<Answer>(m, "Answer")
      .def_readonly("ids", &Answer::ids)
      .def_readonly("logprobs", &Answer::logprobs);
  m.def("answers", &answers, py::arg("directory"), py::arg("device"), py::arg("prompts"),
        py::arg("max_tokens"), py::arg("max_batch") = 4, py::arg("prefill_chunk") = 32,
        py::arg("kv_dtype") = "auto");
}
