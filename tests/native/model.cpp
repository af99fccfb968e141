// What csrc/model reads from files, as Python values: headers, configs, checkpoints, and the one
// function that opens files of a model directory.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "backend/synthetic_rows.h"
#include "base/file.h"
#include "bindings/errors.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/rope.h"
#include "model/safetensors.h"

namespace py = pybind11;

namespace mmengine {
namespace {

// [{name, dtype, shape, offset, bytes}], in the order of the file.
py::list header(const py::bytes& file_bytes, const std::string& file) {
  const std::string_view text = file_bytes;
  py::list tensors;
  for (const TensorInfo& info :
       parse_safetensors(reinterpret_cast<const std::byte*>(text.data()), text.size(), file)) {
    py::dict tensor;
    tensor["name"] = info.name;
    tensor["dtype"] = dtype_name(info.dtype);
    tensor["shape"] = std::vector<std::uint64_t>(info.dims.begin(),
                                                 info.dims.begin() + std::ptrdiff_t(info.rank));
    tensor["offset"] = info.offset;
    tensor["bytes"] = info.bytes;
    tensors.append(tensor);
  }
  return tensors;
}

const char* scheme_name(ActivationScheme scheme) {
  constexpr std::array<const char*, 3> kNames = {"none", "fixed", "per_token"};
  return kNames[static_cast<std::size_t>(scheme)];
}

py::object group_name(std::optional<WeightFormat> format) {
  if (!format) return py::none();
  return py::str(*format == WeightFormat::int4 ? "int4" : "int8");
}

py::object vision(const VisionConfig& read) {
  py::dict values;
  values["hidden_size"] = read.hidden_size;
  values["intermediate_size"] = read.intermediate_size;
  values["num_layers"] = read.num_layers;
  values["num_heads"] = read.num_heads;
  values["head_dim"] = read.head_dim;
  values["patch_size"] = read.patch_size;
  values["image_size"] = read.image_size;
  values["num_channels"] = read.num_channels;
  values["spatial_merge_size"] = read.spatial_merge_size;
  values["rope_theta"] = read.rope_theta;
  values["image_token_id"] = read.image_token_id;
  return values;
}

// Whether the loader sees one model in both directories.
bool equal_configs(const std::string& first, const std::string& second) {
  std::vector<std::string> warnings;
  return read_config(first, warnings) == read_config(second, warnings);
}

py::tuple config(const std::string& directory) {
  std::vector<std::string> warnings;
  const ModelConfig read = read_config(directory, warnings);
  py::dict values;
  values["architecture"] = read.architecture;
  values["hidden_size"] = read.hidden_size;
  values["intermediate_size"] = read.intermediate_size;
  values["vocab_size"] = read.vocab_size;
  values["num_layers"] = read.num_layers;
  values["num_heads"] = read.num_heads;
  values["num_kv_heads"] = read.num_kv_heads;
  values["head_dim"] = read.head_dim;
  values["max_context"] = read.max_context;
  values["norm_eps"] = read.norm_eps;
  values["tied_embeddings"] = read.tied_embeddings;
  values["rope_type"] = rope_type_name(read.rope.type);
  values["rope_theta"] = read.rope.theta;
  values["rope_factor"] = read.rope.factor;
  values["rope_original_context"] = read.rope.original_context;
  values["rope_beta"] = py::make_tuple(read.rope.beta_fast, read.rope.beta_slow);
  values["rope_truncate"] = read.rope.truncate;
  values["rope_attention_factor"] = read.rope.attention_factor;
  values["rope_freq_factors"] =
      py::make_tuple(read.rope.low_freq_factor, read.rope.high_freq_factor);
  values["rope_scaling"] = py::make_tuple(read.rope.scaling_beta, read.rope.scaling_context);
  values["dtype"] = dtype_name(read.dtype);
  values["fp8_linears"] = read.fp8_linears;
  values["activations"] = scheme_name(read.activations);
  values["group_format"] = group_name(read.group_format);
  values["vision"] = read.vision ? vision(*read.vision) : py::none();
  values["eos_ids"] = read.eos_ids;
  return py::make_tuple(values, warnings);
}

// Of the config in a directory: inverse frequencies [pairs], cos and sin [positions, pairs].
py::tuple rope(const std::string& directory, std::int64_t head_dim,
               const std::vector<std::int64_t>& positions) {
  std::vector<std::string> warnings;
  const RopeConfig config = read_config(directory, warnings).rope;
  const std::int64_t pairs = head_dim / 2;
  const std::int64_t length = *std::max_element(positions.begin(), positions.end()) + 1;
  std::vector<float> all_cos(static_cast<std::size_t>(length * pairs)), all_sin(all_cos.size());
  fill_rope_table(config, head_dim, length, all_cos.data(), all_sin.data());
  const auto rows = static_cast<py::ssize_t>(positions.size());
  py::array_t<float> cos({rows, pairs}), sin({rows, pairs});
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) * pairs;
    std::copy_n(all_cos.data() + positions[i] * pairs, pairs, cos.mutable_data() + row);
    std::copy_n(all_sin.data() + positions[i] * pairs, pairs, sin.mutable_data() + row);
  }
  const std::vector<float> inverse = inverse_frequencies(config, head_dim);
  return py::make_tuple(py::array_t<float>(pairs, inverse.data()), cos, sin);
}

// As a model of so many layers with, if asked for, static activation scales, a head of its own, a
// vision tower of so many layers and weights in groups, "int8" or "int4".
Checkpoint open_checkpoint(const std::string& directory, std::int64_t num_layers, bool fixed,
                           bool tied, std::int64_t vision_layers, const std::string& groups) {
  ModelConfig config;
  config.num_layers = num_layers;
  config.tied_embeddings = tied;
  config.fp8_linears = true;  // else activation scales are news, and a warning
  if (fixed) config.activations = ActivationScheme::fixed;
  if (!groups.empty()) {
    config.group_format = groups == "int4" ? WeightFormat::int4 : WeightFormat::int8;
  }
  if (vision_layers > 0) {
    config.vision.emplace();
    config.vision->num_layers = vision_layers;
  }
  return Checkpoint::open(directory, config);
}

// A synthetic model as the loader opens it.
Checkpoint open_synthetic(const std::string& model) {
  std::vector<std::string> warnings;
  return Checkpoint::open(model, read_config(model, warnings));
}

// Rows of a matrix without data: (the stored bytes [rows, k, dtype size], the values [rows, k]).
py::tuple synthetic_rows(const Checkpoint& checkpoint, const std::string& name, std::int64_t begin,
                         std::int64_t rows) {
  const HostTensor tensor = checkpoint.tensor(name);
  const std::int64_t k = tensor.shape[1];
  const auto size = static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  const SyntheticRows reader(tensor.seed.value(), tensor.dtype, k);
  py::array_t<std::uint8_t> stored({rows, k, size});
  py::array_t<float> values({rows, k});
  for (std::int64_t i = 0; i < rows; ++i) {
    reader.read(begin + i, stored.mutable_data() + i * k * size);
    reader.read_values(begin + i, values.mutable_data() + i * k);
  }
  return py::make_tuple(stored, values);
}

// (dtype name, the bytes as uint8 [..., dtype size])
py::tuple tensor(const Checkpoint& checkpoint, const std::string& name) {
  const HostTensor found = checkpoint.tensor(name);
  const auto* bytes = static_cast<const std::uint8_t*>(found.data);
  std::vector<py::ssize_t> shape(found.shape.dims.begin(),
                                 found.shape.dims.begin() + found.shape.rank);
  shape.push_back(static_cast<py::ssize_t>(dtype_bytes(found.dtype)));
  return py::make_tuple(dtype_name(found.dtype), py::array_t<std::uint8_t>(shape, bytes));
}

py::bytes read_mapped(const std::string& directory, const std::string& name) {
  const MappedFile file = Directory(directory).map(name);
  file.advise(0, file.size(), MappedFile::Advice::will_need);
  py::bytes copy(reinterpret_cast<const char*>(file.data()), file.size());
  file.advise(0, file.size(), MappedFile::Advice::done);
  return copy;
}

}  // namespace
}  // namespace mmengine

PYBIND11_MODULE(MM_MODULE, module) {
  using mmengine::Checkpoint;
  mmengine::register_errors(module);
  module.def("parse_safetensors", &mmengine::header, py::arg("file_bytes"), py::arg("file"));
  module.def("read_config", &mmengine::config, py::arg("directory"));
  module.def("equal_configs", &mmengine::equal_configs, py::arg("first"), py::arg("second"));
  module.def("rope_table", &mmengine::rope, py::arg("directory"), py::arg("head_dim"),
             py::arg("positions"));
  module.def("map_file", &mmengine::read_mapped, py::arg("directory"), py::arg("name"));
  module.def(
      "read_file",
      [](const std::string& directory, const std::string& name, std::uint64_t max_bytes) {
        return py::bytes(mmengine::Directory(directory).read(name, max_bytes));
      },
      py::arg("directory"), py::arg("name"), py::arg("max_bytes"));
  module.def("open_synthetic", &mmengine::open_synthetic, py::arg("model"));
  module.def("synthetic_rows", &mmengine::synthetic_rows, py::arg("checkpoint"), py::arg("name"),
             py::arg("begin"), py::arg("rows"));
  py::class_<Checkpoint>(module, "Checkpoint")
      .def(py::init(&mmengine::open_checkpoint), py::arg("directory"), py::arg("num_layers"),
           py::arg("fixed") = false, py::arg("tied") = true, py::arg("vision_layers") = 0,
           py::arg("groups") = "")
      .def("names", &Checkpoint::names)
      .def("draft_head",
           [](const Checkpoint& c) { return c.kind() == mmengine::CheckpointKind::draft_head; })
      .def("has", &Checkpoint::has, py::arg("name"))
      .def("tensor", &mmengine::tensor, py::arg("name"))
      .def(
          "source",
          [](const Checkpoint& c, const std::string& name) { return c.source(name).text(); },
          py::arg("name"))
      .def("bytes", &Checkpoint::bytes)
      .def("warnings", &Checkpoint::warnings)
      .def("interleaved", [](const Checkpoint& checkpoint) {
        return checkpoint.row_order() == mmengine::RowOrder::interleaved;
      });
}
