// Engine: one loaded model and the requests that share it. Several engines may live in a process.
// submit, cancel, finish, stats, close: any thread, in a sink, too; close not in a TokenConstraint.
// step and run: one thread at a time (checked).
// Standard library only, C++17.
#pragma once

#include <memory>
#include <string>

#include "mmengine/error.h"
#include "mmengine/export.h"
#include "mmengine/types.h"

namespace mmengine {

class MM_EXPORT Engine {
 public:
  // A directory in HF or Mistral layout, or made by `mm-run convert`; or a name for random weights
  // of a model's shapes, the same in every process: "synthetic:NAME" of mistral-medium-3.5 or
  // llama-3.2-1b, "synthetic:FILE.json" of a file like params.json, both also with ",layers=N".
  // Error{model_not_found | model_format | unsupported_model | resource | usage}.
  static Engine load(const std::string& directory, const EngineOptions& options = {});
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();  // closes

  RequestId submit(Request request);  // validates and queues; Error{request | overloaded}
  void cancel(RequestId id);  // unknown or finished ids are ignored; its room in the queue is free
  void finish(RequestId id);  // ends it with reason "stop": a stop string was seen

  // One step; false = nothing left to do. What the sink throws ends neither the step nor a request:
  // it is thrown on at the end.
  bool step(const Sink& sink);
  void run(const Sink& sink);  // step until idle

  EngineStats stats() const;
  const MemoryPlan& plan() const;
  const ModelInfo& info() const;
  std::string description() const;  // "cpu, avx2, 2 threads"
  int threads() const;
  // Bytes per second at which this machine's memory is read, line after line or eight pages in
  // turn, whichever is faster; takes about a second. Called by the thread that steps, between steps
  // (checked).
  double measure_read_bandwidth();
  // Floating point operations per second that its threads reach in registers, a multiply-add
  // counted as two: of f32, on cuda of f16 by the matrix instruction that products use. Takes a
  // fraction of a second. Called like measure_read_bandwidth.
  double measure_multiply_peak();
  // The same of products of 8-bit integers that are summed up: the limit of int8 and int4 weights.
  double measure_int8_peak();
  void close();  // idempotent, any thread; later calls throw Error{engine_dead}

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  Impl& live() const;  // Error{engine_dead | fork}
  std::unique_ptr<Impl> impl_;
};

// What a checkpoint directory or a synthetic model holds, from its config and headers; no weight is
// read.
MM_EXPORT ModelInfo inspect(const std::string& directory);

}  // namespace mmengine
