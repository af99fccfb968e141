// census and forecast_cpu for Python: plain dicts, made once and read by mmengine.forecast.
#include "mmengine/forecast.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/forecast.h"

namespace py = pybind11;

namespace mmengine {
namespace {

py::dict census_dict(const Census& census) {
  py::list components;
  for (const Census::Component& component : census.components) {
    py::dict entry;
    entry["name"] = component.name;
    entry["tensors"] = component.tensors;
    entry["parameters"] = component.parameters;
    entry["bytes"] = component.bytes;
    entry["resident_bytes"] = component.resident_bytes;
    entry["whole_bytes"] = component.whole_bytes;
    components.append(entry);
  }
  py::dict out;
  out["components"] = components;
  out["hidden_size"] = census.hidden_size;
  out["intermediate_size"] = census.intermediate_size;
  out["vocab_size"] = census.vocab_size;
  out["num_layers"] = census.num_layers;
  out["num_heads"] = census.num_heads;
  out["num_kv_heads"] = census.num_kv_heads;
  out["head_dim"] = census.head_dim;
  out["max_context"] = census.max_context;
  out["rope_type"] = census.rope_type;
  out["rope_theta"] = census.rope_theta;
  out["rope_factor"] = census.rope_factor;
  out["rope_original_context"] = census.rope_original_context;
  out["rope_attention_factor"] = census.rope_attention_factor;
  out["vision_hidden_size"] = census.vision_hidden_size;
  out["vision_intermediate_size"] = census.vision_intermediate_size;
  out["vision_num_heads"] = census.vision_num_heads;
  out["vision_patches"] = census.vision_patches;
  out["weight_dtype"] = census.weight_dtype;
  out["warnings"] = census.warnings;
  return out;
}

py::dict forecast_dict(const CpuForecast& forecast) {
  py::dict out;
  out["fits"] = forecast.fits;
  out["needed_bytes"] = forecast.needed_bytes;
  out["available_bytes"] = forecast.available_bytes;
  out["resident_bytes"] = forecast.resident_bytes;
  out["kv_bytes"] = forecast.kv_bytes;
  out["workspace_bytes"] = forecast.workspace_bytes;
  out["kv_blocks"] = forecast.kv_blocks;
  out["kv_block_tokens"] = forecast.kv_block_tokens;
  out["max_context"] = forecast.max_context;
  out["kv_dtype"] = forecast.kv_dtype == KvDtype::f32    ? "f32"
                    : forecast.kv_dtype == KvDtype::bf16 ? "bf16"
                                                         : "fp8";
  return out;
}

}  // namespace

void bind_forecast(py::module_& m) {
  m.def(
      "census",
      [](const std::string& directory, const std::string& weight_dtype, bool text_only,
         bool draft) { return census_dict(census(directory, weight_dtype, text_only, draft)); },
      py::arg("directory"), py::arg("weight_dtype") = "auto", py::arg("text_only") = false,
      py::arg("draft") = false);
  m.def(
      "forecast_cpu",
      [](const std::string& directory, const EngineOptions& options) {
        return forecast_dict(forecast_cpu(directory, options));
      },
      py::arg("directory"), py::arg("options"));
}

}  // namespace mmengine
