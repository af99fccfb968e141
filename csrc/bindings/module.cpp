// The Python module mmengine._core: the public C++ API, and nothing else. The GIL is free while the
// engine loads, computes and closes. Results of a step are collected without it and turned into
// Python objects afterwards.
#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/constraint.h"
#include "bindings/errors.h"
#include "bindings/forecast.h"
#include "mmengine/mmengine.h"

namespace py = pybind11;
using namespace mmengine;

namespace {

struct CollectedOutput {
  RequestId id = 0;
  std::vector<std::int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;  // the chosen token first; empty: none asked for
  std::vector<std::vector<TokenLogprob>> prompt_logprobs;  // by token
  std::vector<float> logits;
  std::size_t num_logits_rows = 0;
  FinishReason finish = FinishReason::running;
  std::string error;
  Usage usage;
};

CollectedOutput collect(const StepOutput& out, std::size_t vocab_size) {
  CollectedOutput copy;
  copy.id = out.id;
  copy.token_ids.assign(out.token_ids, out.token_ids + out.num_tokens);
  if (out.logprobs != nullptr) {
    copy.logprobs.assign(out.logprobs, out.logprobs + out.num_logprobs);
  }
  for (std::size_t row = 0; row < out.num_prompt_rows; ++row) {
    const TokenLogprob* first = out.prompt_logprobs + row * out.num_prompt_logprobs;
    copy.prompt_logprobs.emplace_back(first, first + out.num_prompt_logprobs);
  }
  if (out.logits != nullptr) {
    copy.logits.assign(out.logits, out.logits + out.num_logits_rows * vocab_size);
  }
  copy.num_logits_rows = out.num_logits_rows;
  copy.finish = out.finish;
  copy.error = out.error;
  copy.usage = out.usage;
  return copy;
}

std::vector<std::pair<std::int32_t, float>> pairs(const std::vector<TokenLogprob>& logprobs) {
  std::vector<std::pair<std::int32_t, float>> all;
  for (const TokenLogprob& l : logprobs) {
    if (l.token >= 0) all.emplace_back(l.token, l.logprob);  // a small vocabulary has fewer
  }
  return all;
}

py::object logits_array(CollectedOutput& out) {
  if (out.num_logits_rows == 0) return py::none();
  auto owned = std::make_unique<std::vector<float>>(std::move(out.logits));
  const std::size_t rows = out.num_logits_rows, columns = owned->size() / rows;
  float* data = owned->data();
  py::capsule owner(owned.release(), [](void* p) {
    const std::unique_ptr<std::vector<float>> freed(static_cast<std::vector<float>*>(p));
  });
  return py::array_t<float>({rows, columns}, data, owner);
}

// The engine and what it must remember of its requests to describe their results.
class PyEngine {
 public:
  PyEngine(const std::string& directory, const EngineOptions& options)
      : engine_(load(directory, options)),
        vocab_size_(static_cast<std::size_t>(engine_.info().vocab_size)) {}

  RequestId submit(std::vector<std::int32_t> token_ids, const SamplingParams& sampling, bool logits,
                   std::string cache_salt, RequestId same_prompt_as, py::object constraint,
                   double deadline_s) {
    Request request;
    request.token_ids = std::move(token_ids);
    request.sampling = sampling;
    request.logits = logits;
    request.cache_salt = std::move(cache_salt);
    request.same_prompt_as = same_prompt_as;
    request.deadline_s = deadline_s;
    if (!constraint.is_none()) request.constraint = constraint_of(std::move(constraint));
    return engine_.submit(std::move(request));
  }

  std::pair<bool, std::vector<CollectedOutput>> step() {
    std::vector<CollectedOutput> outputs;
    bool more = false;
    {
      const py::gil_scoped_release release;
      more = engine_.step(
          [&](const StepOutput& out) { outputs.push_back(collect(out, vocab_size_)); });
    }
    return {more, std::move(outputs)};
  }

  void close() {
    const py::gil_scoped_release release;
    engine_.close();
  }

  double measure_read_bandwidth() {
    const py::gil_scoped_release release;
    return engine_.measure_read_bandwidth();
  }

  double measure_multiply_peak() {
    const py::gil_scoped_release release;
    return engine_.measure_multiply_peak();
  }
  double measure_int8_peak() {
    const py::gil_scoped_release release;
    return engine_.measure_int8_peak();
  }

  Engine& engine() { return engine_; }

 private:
  static Engine load(const std::string& directory, const EngineOptions& options) {
    const py::gil_scoped_release release;
    return Engine::load(directory, options);
  }

  Engine engine_;
  std::size_t vocab_size_;
};

void bind_options(py::module_& m) {
  py::native_enum<WeightDtype>(m, "WeightDtype", "enum.Enum")
      .value("automatic", WeightDtype::automatic)
      .value("f32", WeightDtype::f32)
      .value("bf16", WeightDtype::bf16)
      .value("fp8", WeightDtype::fp8)
      .value("int8", WeightDtype::int8)
      .value("int4", WeightDtype::int4)
      .finalize();
  py::native_enum<KvDtype>(m, "KvDtype", "enum.Enum")
      .value("automatic", KvDtype::automatic)
      .value("f32", KvDtype::f32)
      .value("bf16", KvDtype::bf16)
      .value("fp8", KvDtype::fp8)
      .finalize();
  py::native_enum<FinishReason>(m, "FinishReason", "enum.Enum")
      .value("running", FinishReason::running)
      .value("stop", FinishReason::stop)
      .value("length", FinishReason::length)
      .value("cancelled", FinishReason::cancelled)
      .value("error", FinishReason::error)
      .finalize();
  py::class_<EngineOptions>(m, "EngineOptions")
      .def(py::init<>())
      .def_readwrite("device", &EngineOptions::device)
      .def_readwrite("weight_dtype", &EngineOptions::weight_dtype)
      .def_readwrite("kv_dtype", &EngineOptions::kv_dtype)
      .def_readwrite("max_context", &EngineOptions::max_context)
      .def_readwrite("max_batch", &EngineOptions::max_batch)
      .def_readwrite("prefill_chunk", &EngineOptions::prefill_chunk)
      .def_readwrite("max_waiting", &EngineOptions::max_waiting)
      .def_readwrite("max_waiting_tokens", &EngineOptions::max_waiting_tokens)
      .def_readwrite("kv_blocks", &EngineOptions::kv_blocks)
      .def_readwrite("memory_bytes", &EngineOptions::memory_bytes)
      .def_readwrite("threads", &EngineOptions::threads)
      .def_readwrite("seed", &EngineOptions::seed)
      .def_readwrite("prefix_cache", &EngineOptions::prefix_cache)
      .def_readwrite("allow_nonfinite", &EngineOptions::allow_nonfinite)
      .def_readwrite("instruction_set", &EngineOptions::instruction_set)
      .def_readwrite("progress", &EngineOptions::progress);
  py::class_<SamplingParams>(m, "SamplingParams")
      .def(py::init<>())
      .def_readwrite("max_tokens", &SamplingParams::max_tokens)
      .def_readwrite("min_tokens", &SamplingParams::min_tokens)
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("top_p", &SamplingParams::top_p)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("top_k", &SamplingParams::top_k)
      .def_readwrite("seed", &SamplingParams::seed)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
      .def_readwrite("logit_bias", &SamplingParams::logit_bias)
      .def_readwrite("logprobs", &SamplingParams::logprobs)
      .def_readwrite("prompt_logprobs", &SamplingParams::prompt_logprobs)
      .def_readwrite("ignore_eos", &SamplingParams::ignore_eos)
      .def_readwrite("stop_token_ids", &SamplingParams::stop_token_ids);
}

void bind_results(py::module_& m) {
  py::class_<CollectedOutput>(m, "StepOutput")
      .def_readonly("id", &CollectedOutput::id)
      .def_readonly("token_ids", &CollectedOutput::token_ids)
      .def_property_readonly("logprobs",
                             [](const CollectedOutput& out) { return pairs(out.logprobs); })
      .def_property_readonly("prompt_logprobs",
                             [](const CollectedOutput& out) {
                               py::list rows;
                               for (const auto& row : out.prompt_logprobs) rows.append(pairs(row));
                               return rows;
                             })
      .def("take_logits", &logits_array)
      .def_readonly("finish", &CollectedOutput::finish)
      .def_readonly("error", &CollectedOutput::error)
      .def_property_readonly("prompt_tokens",
                             [](const CollectedOutput& out) { return out.usage.prompt_tokens; })
      .def_property_readonly("cached_tokens",
                             [](const CollectedOutput& out) { return out.usage.cached_tokens; })
      .def_property_readonly("completion_tokens", [](const CollectedOutput& out) {
        return out.usage.completion_tokens;
      });
  py::class_<EngineStats>(m, "EngineStats")
      .def_readonly("steps", &EngineStats::steps)
      .def_readonly("prompt_tokens", &EngineStats::prompt_tokens)
      .def_readonly("cached_tokens", &EngineStats::cached_tokens)
      .def_readonly("generated_tokens", &EngineStats::generated_tokens)
      .def_readonly("preemptions", &EngineStats::preemptions)
      .def_readonly("kv_blocks_total", &EngineStats::kv_blocks_total)
      .def_readonly("kv_blocks_free", &EngineStats::kv_blocks_free)
      .def_readonly("kv_blocks_used", &EngineStats::kv_blocks_used)
      .def_readonly("kv_blocks_cached", &EngineStats::kv_blocks_cached)
      .def_readonly("kv_saturated", &EngineStats::kv_saturated)
      .def_readonly("requests_running", &EngineStats::requests_running)
      .def_readonly("requests_waiting", &EngineStats::requests_waiting)
      .def_readonly("seconds_scheduling", &EngineStats::seconds_scheduling)
      .def_readonly("seconds_computing", &EngineStats::seconds_computing);
  py::class_<MemoryPlan>(m, "MemoryPlan")
      .def_property_readonly("regions",
                             [](const MemoryPlan& plan) {
                               std::vector<std::pair<std::string, std::int64_t>> regions;
                               for (const auto& region : plan.regions) {
                                 regions.emplace_back(region.name, region.bytes);
                               }
                               return regions;
                             })
      .def_readonly("weights_bytes", &MemoryPlan::weights_bytes)
      .def_readonly("resident_bytes", &MemoryPlan::resident_bytes)
      .def_readonly("bytes_per_token", &MemoryPlan::bytes_per_token)
      .def_readonly("flops_per_token", &MemoryPlan::flops_per_token)
      .def_readonly("flops_per_logits_row", &MemoryPlan::flops_per_logits_row)
      .def_readonly("flops_per_position", &MemoryPlan::flops_per_position)
      .def_readonly("kv_bytes_per_token_f32", &MemoryPlan::kv_bytes_per_token_f32)
      .def_readonly("kv_bytes_per_token_bf16", &MemoryPlan::kv_bytes_per_token_bf16)
      .def_readonly("kv_bytes_per_token_fp8", &MemoryPlan::kv_bytes_per_token_fp8)
      .def_readonly("kv_blocks", &MemoryPlan::kv_blocks)
      .def_readonly("kv_block_tokens", &MemoryPlan::kv_block_tokens)
      .def_readonly("max_context", &MemoryPlan::max_context)
      .def_readonly("kv_dtype", &MemoryPlan::kv_dtype);
  py::class_<ModelInfo>(m, "ModelInfo")
      .def_readonly("kind", &ModelInfo::kind)
      .def_readonly("architecture", &ModelInfo::architecture)
      .def_readonly("layout", &ModelInfo::layout)
      .def_readonly("hidden_size", &ModelInfo::hidden_size)
      .def_readonly("intermediate_size", &ModelInfo::intermediate_size)
      .def_readonly("vocab_size", &ModelInfo::vocab_size)
      .def_readonly("num_layers", &ModelInfo::num_layers)
      .def_readonly("num_heads", &ModelInfo::num_heads)
      .def_readonly("num_kv_heads", &ModelInfo::num_kv_heads)
      .def_readonly("head_dim", &ModelInfo::head_dim)
      .def_readonly("max_context", &ModelInfo::max_context)
      .def_readonly("rope_type", &ModelInfo::rope_type)
      .def_readonly("rope_theta", &ModelInfo::rope_theta)
      .def_readonly("rope_factor", &ModelInfo::rope_factor)
      .def_readonly("rope_original_context", &ModelInfo::rope_original_context)
      .def_readonly("rope_attention_factor", &ModelInfo::rope_attention_factor)
      .def_readonly("rope_beta_fast", &ModelInfo::rope_beta_fast)
      .def_readonly("rope_beta_slow", &ModelInfo::rope_beta_slow)
      .def_readonly("rope_truncate", &ModelInfo::rope_truncate)
      .def_readonly("rope_low_freq_factor", &ModelInfo::rope_low_freq_factor)
      .def_readonly("rope_high_freq_factor", &ModelInfo::rope_high_freq_factor)
      .def_readonly("rope_scaling_beta", &ModelInfo::rope_scaling_beta)
      .def_readonly("rope_scaling_context", &ModelInfo::rope_scaling_context)
      .def_readonly("norm_eps", &ModelInfo::norm_eps)
      .def_readonly("tied_embeddings", &ModelInfo::tied_embeddings)
      .def_readonly("eos_ids", &ModelInfo::eos_ids)
      .def_readonly("weight_dtype", &ModelInfo::weight_dtype)
      .def_readonly("quantization", &ModelInfo::quantization)
      .def_readonly("weights_bytes", &ModelInfo::weights_bytes)
      .def_readonly("warnings", &ModelInfo::warnings)
      .def_property_readonly("vision",
                             [](const ModelInfo& info) -> std::optional<py::dict> {
                               if (!info.vision) return std::nullopt;
                               py::dict vision;
                               vision["hidden_size"] = info.vision->hidden_size;
                               vision["intermediate_size"] = info.vision->intermediate_size;
                               vision["num_layers"] = info.vision->num_layers;
                               vision["num_heads"] = info.vision->num_heads;
                               vision["patch_size"] = info.vision->patch_size;
                               vision["image_size"] = info.vision->image_size;
                               vision["spatial_merge_size"] = info.vision->spatial_merge_size;
                               vision["tensors"] = info.vision->tensors;
                               vision["parameters"] = info.vision->parameters;
                               vision["bytes"] = info.vision->bytes;
                               return vision;
                             })
      .def_property_readonly("tensors", [](const ModelInfo& info) {
        py::list tensors;
        for (const auto& t : info.tensors) tensors.append(py::make_tuple(t.name, t.dtype, t.shape));
        return tensors;
      });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  register_errors(m);
  bind_options(m);
  bind_results(m);
  m.def("inspect", &inspect, py::arg("directory"));
  bind_forecast(m);
  py::class_<PyEngine>(m, "Engine")
      .def(py::init<const std::string&, const EngineOptions&>(), py::arg("directory"),
           py::arg("options"))
      .def("submit", &PyEngine::submit, py::arg("token_ids"), py::arg("sampling"),
           py::arg("logits") = false, py::arg("cache_salt") = "", py::arg("same_prompt_as") = 0,
           py::arg("constraint") = py::none(), py::arg("deadline_s") = 0.0)
      .def("step", &PyEngine::step)
      .def(
          "cancel", [](PyEngine& e, RequestId id) { e.engine().cancel(id); }, py::arg("id"))
      .def(
          "finish", [](PyEngine& e, RequestId id) { e.engine().finish(id); }, py::arg("id"))
      .def("stats", [](PyEngine& e) { return e.engine().stats(); })
      .def("plan", [](PyEngine& e) { return e.engine().plan(); })
      .def("info", [](PyEngine& e) { return e.engine().info(); })
      .def("description", [](PyEngine& e) { return e.engine().description(); })
      .def("threads", [](PyEngine& e) { return e.engine().threads(); })
      .def("measure_read_bandwidth", &PyEngine::measure_read_bandwidth)
      .def("measure_multiply_peak", &PyEngine::measure_multiply_peak)
      .def("measure_int8_peak", &PyEngine::measure_int8_peak)
      .def("close", &PyEngine::close);
}
