// TestBackend: the stages of a backend on numpy arrays. What a stage writes is what arrives in the
// array: rows may lie apart (guard columns), and nothing is copied that an op did not write.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/check.h"
#include "device_arrays.h"

namespace mmengine {

namespace py = pybind11;

using Ints = py::array_t<std::int32_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

inline DType dtype_of(const std::string& name) {
  for (DType t : {DType::f32, DType::bf16, DType::f16, DType::e4m3, DType::i8, DType::u8}) {
    if (name == dtype_name(t)) return t;
  }
  throw py::value_error("unknown dtype " + name);
}

inline Role role_of(const std::string& name) {
  const char* names[] = {"embed", "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"};
  for (int i = 0; i < 6; ++i) {
    if (name == names[i]) return static_cast<Role>(i);
  }
  throw py::value_error("unknown role " + name);
}

inline InputQuant quant_of(const std::string& name) {
  if (name == "none") return InputQuant::none;
  if (name == "fixed") return InputQuant::fixed;
  if (name == "per_token") return InputQuant::per_token;
  throw py::value_error("unknown quantisation " + name);
}

inline WeightFormat format_of(const std::string& name) {
  if (name == "f32") return WeightFormat::f32;
  if (name == "bf16") return WeightFormat::bf16;
  if (name == "fp8") return WeightFormat::fp8;
  if (name == "int8") return WeightFormat::int8;
  if (name == "int4") return WeightFormat::int4;
  throw py::value_error("unknown format " + name);
}

// A float32 matrix whose rows may be strided; written in place.
inline TensorView matrix(const py::array& a) {
  if (a.ndim() != 2 || !py::isinstance<py::array_t<float>>(a) || a.strides(1) != 4) {
    throw py::value_error("expected a float32 matrix with adjacent columns");
  }
  TensorView view;
  view.data = const_cast<void*>(a.data());
  view.shape = {a.shape(0), a.shape(1)};
  view.row_stride = a.shape(0) > 1 ? a.strides(0) / 4 : a.shape(1);
  return view;
}

struct PackedWeight {
  Buffer buffer;
  Weight weight;
};

struct Pool {  // blocks of one layer, filled with 0xff: NaN; behind them the count of saturated
  std::shared_ptr<Backend> backend;
  py::ssize_t blocks = 0;
  Buffer buffer;
  KvView view;
  std::int64_t saturated() const {
    std::int64_t count = 0;
    backend->download(&count, view.saturated, sizeof count);
    backend->wait();
    return count;
  }
};

struct SlotArrays {
  DeviceInts length, pending, block_table;
  Slots slots;
  SlotArrays(const std::shared_ptr<Backend>& backend, int count, int max_blocks)
      : length(backend, std::vector(static_cast<std::size_t>(count), 0)),
        pending(backend, std::vector(static_cast<std::size_t>(count), -1)),
        block_table(backend, std::vector(static_cast<std::size_t>(count) * max_blocks, 0)),
        slots{length.data(), pending.data(), block_table.data(), count, max_blocks} {}
};

struct StepArrays {
  DeviceInts ids, positions, sequence, cu_rows, slot, cu_logits, logits_row;
  Step step;
};

class TestBackend {
 public:
  TestBackend(const std::string& name, int threads) {
    const auto colon = name.find(':');
    BackendOptions options;
    const std::string kind = name.substr(0, colon);
    options.kind = kind == "ref"    ? BackendKind::ref
                   : kind == "cuda" ? BackendKind::cuda
                                    : BackendKind::cpu;
    in_place_ = options.kind != BackendKind::cuda;
    if (colon != std::string::npos) options.instruction_set = name.substr(colon + 1);
    options.threads = threads;
    backend_ = make_backend(options);
    scratch(64 << 20);
  }

  void scratch(std::size_t bytes) {
    scratch_ = backend_->allocate(bytes);
    if (!in_place_) {  // of the host untouched pages cost nothing
      const std::vector<std::uint8_t> poison(bytes, 0xff);
      backend_->upload(scratch_.data(), poison.data(), bytes);
    }
    backend_->set_scratch({scratch_.data(), DType::u8, {static_cast<std::int64_t>(bytes)}, 1});
  }

  std::string describe() const { return backend_->describe(); }
  int threads() const { return backend_->threads(); }
  int block_tokens() const { return backend_->traits().block_tokens(); }
  double bandwidth() { return backend_->measure_read_bandwidth(); }
  double multiply_peak() { return backend_->measure_multiply_peak(); }
  double int8_peak() { return backend_->measure_int8_peak(); }

  std::size_t scratch_bytes(std::int64_t hidden, std::int64_t intermediate, std::int64_t heads,
                            std::int64_t kv_heads, std::int64_t head_dim, int rows, int logits_rows,
                            int context) const {
    return backend_->traits().scratch_bytes({hidden, intermediate, 1, 1, heads, kv_heads, head_dim},
                                            {rows, rows, logits_rows, context}, threads());
  }

  // parts: (array of bits, dtype, array of scales or None, interleaved). Of i8 and u8 the scales
  // are f16 [rows, groups] as bits; minima: those of each part of u8; k: the width of u8.
  using Part = std::tuple<py::array, std::string, std::optional<py::array>, bool>;
  std::unique_ptr<PackedWeight> pack(const std::vector<Part>& parts, const std::string& role,
                                     const std::string& format, std::int64_t head_dim,
                                     bool allow_nonfinite, const std::string& quant,
                                     const std::vector<float>& input_scales,
                                     const std::vector<py::array>& minima, std::int64_t k) {
    HostWeight host;
    host.allow_nonfinite = allow_nonfinite;
    host.quant = quant_of(quant);
    std::size_t read = 0;
    std::mutex reading;
    host.on_read = [&](std::size_t bytes) {
      const std::lock_guard lock(reading);
      read += bytes;
    };
    WeightSpec spec{role_of(role), 0, 0, format_of(format), head_dim};
    for (const auto& [array, dtype, scale, interleaved] : parts) {
      HostWeight::Part part;
      part.weight = {array.data(), dtype_of(dtype), {array.shape(0), array.shape(1)}};
      if (scale && scale->ndim() == 2) {
        part.weight_scale = {scale->data(), DType::f16, {scale->shape(0), scale->shape(1)}};
      } else if (scale) {
        part.weight_scale = {scale->data(), DType::f32, {scale->size()}};
      }
      if (!minima.empty()) {
        const py::array& min = minima.at(host.parts.size());
        part.weight_min = {min.data(), DType::f16, {min.shape(0), min.shape(1)}};
      }
      if (!input_scales.empty()) {
        part.input_scale = {&input_scales.at(host.parts.size()), DType::f32, {1}};
      }
      part.rows = interleaved ? RowOrder::interleaved : RowOrder::half_split;
      part.source = {"model.safetensors", "part" + std::to_string(host.parts.size())};
      const std::string& name = part.source.tensor;
      part.weight_scale_source = {"model.safetensors", name + ".weight_scale"};
      part.weight_min_source = {"model.safetensors", name + ".weight_min"};
      part.input_scale_source = {"model.safetensors", name + ".input_scale"};
      host.parts.push_back(part);
      spec.n += array.shape(0);
      spec.k = k > 0 ? k : array.shape(1);
    }
    const std::size_t bytes = backend_->traits().packed_bytes(spec), guard = 64;
    auto packed = std::make_unique<PackedWeight>();
    packed->buffer = backend_->allocate(bytes + guard);
    std::vector<std::uint8_t> image(bytes + guard, 0xa5);
    backend_->upload(packed->buffer.data(), image.data(), image.size());
    packed->weight = backend_->pack(
        host, spec, {packed->buffer.data(), DType::u8, {static_cast<std::int64_t>(bytes)}, 1});
    backend_->download(image.data(), packed->buffer.data(), image.size());
    backend_->wait();
    for (std::size_t i = bytes; i < bytes + guard; ++i) {
      MM_CHECK(image[i] == 0xa5, "pack", "wrote byte ", i, " of ", bytes);
    }
    const HostTensor& weight = host.parts[0].weight;
    const auto first =
        static_cast<std::size_t>(spec.n * weight.shape[1]) * dtype_bytes(weight.dtype);
    MM_CHECK(read == first, "pack", "on_read: expected ", first, " bytes, got ", read);
    return packed;
  }

  std::unique_ptr<Pool> kv(int blocks, int kv_heads, int head_dim, const std::string& dtype) {
    auto pool = std::make_unique<Pool>();
    const std::size_t bytes =
        backend_->traits().kv_block_bytes({1, kv_heads, head_dim, block_tokens(), dtype_of(dtype)});
    std::vector<std::uint8_t> image(bytes * blocks, 0xff);
    const std::size_t end = (image.size() + 7) / 8 * 8;
    image.resize(end + sizeof(std::int64_t), 0);
    pool->backend = backend_;
    pool->blocks = blocks;
    pool->buffer = backend_->allocate(image.size());
    auto* data = static_cast<std::byte*>(pool->buffer.data());
    backend_->upload(data, image.data(), image.size());
    pool->view = {data,
                  static_cast<std::int64_t>(bytes),
                  dtype_of(dtype),
                  block_tokens(),
                  kv_heads,
                  head_dim,
                  reinterpret_cast<std::int64_t*>(data + end)};
    return pool;
  }

  std::unique_ptr<SlotArrays> slots(int count, int max_blocks) const {
    return std::make_unique<SlotArrays>(backend_, count, max_blocks);
  }

  std::unique_ptr<StepArrays> begin(SlotArrays& slots, std::vector<std::int32_t> row_id,
                                    std::vector<std::int32_t> cu_rows,
                                    std::vector<std::int32_t> slot, std::vector<std::int32_t> start,
                                    std::vector<std::int32_t> cu_logits,
                                    std::vector<std::int32_t> logits_row,
                                    std::vector<std::int32_t> table_update) {
    auto s = std::make_unique<StepArrays>();
    const std::size_t rows = row_id.size(), sequences = slot.size(), logits = logits_row.size();
    const auto ints = [&](std::size_t n) { return DeviceInts(backend_, std::vector(n, -7)); };
    for (auto* v : {&s->ids, &s->positions, &s->sequence}) *v = ints(rows);
    for (auto* v : {&s->cu_rows, &s->cu_logits}) *v = ints(sequences + 1);
    s->slot = ints(sequences);
    s->logits_row = ints(logits);
    s->step = {static_cast<int>(rows),
               static_cast<int>(sequences),
               static_cast<int>(logits),
               static_cast<int>(table_update.size() / 3),
               s->ids.data(),
               s->positions.data(),
               s->sequence.data(),
               s->cu_rows.data(),
               s->slot.data(),
               s->cu_logits.data(),
               s->logits_row.data(),
               slots.slots.block_table,
               slots.slots.max_blocks};
    OpArrays op = arrays();
    const auto at = [&op](std::vector<std::int32_t>& v) { return op.at(v.data(), v.size()); };
    const StepInput input{at(row_id),    at(cu_rows),    at(slot),        at(start),
                          at(cu_logits), at(logits_row), at(table_update)};
    backend_->begin({input, slots.slots, s->step});
    op.bring_back();
    return s;
  }

  void embed(const StepArrays& s, const PackedWeight& table, const py::array& out) {
    OpArrays op = arrays();
    backend_->embed({s.step, table.weight, op.at(matrix(out))});
    op.bring_back();
  }

  static const float* floats(OpArrays& op, const Floats& a) {
    return op.at(a.data(), static_cast<std::size_t>(a.size()));
  }
  static float* floats(OpArrays& op, std::optional<Floats>& a) {
    return a ? op.at(a->mutable_data(), static_cast<std::size_t>(a->size())) : nullptr;
  }
  static Norm norm_of(OpArrays& op, const Floats& gain, float eps) {
    return {{const_cast<float*>(floats(op, gain)), DType::f32, {gain.size()}, 1}, eps};
  }

  void norm_qkv_rope_store(const StepArrays& s, const py::array& residual, const Floats& gain,
                           float eps, const PackedWeight& w, const Floats& cos, const Floats& sin,
                           const Pool& pool, const py::array& q,
                           const std::optional<Floats>& query_scale) {
    OpArrays op = arrays();
    const Norm norm = norm_of(op, gain, eps);
    const RopeTable rope{floats(op, cos), floats(op, sin),
                         query_scale ? floats(op, *query_scale) : nullptr};
    backend_->norm_qkv_rope_store(
        {s.step, op.at(matrix(residual)), norm, w.weight, rope, pool.view, op.at(matrix(q))});
    op.bring_back();
  }

  void attention(const StepArrays& s, const py::array& q, const Pool& pool, float scale,
                 const PackedWeight& consumer, const py::array& out,
                 std::optional<Floats>& out_scale) {
    OpArrays op = arrays();
    backend_->attention({s.step, op.at(matrix(q)), pool.view, scale, consumer.weight,
                         op.at(matrix(out)), floats(op, out_scale)});
    op.bring_back();
  }

  void linear_residual(const StepArrays& s, const py::array& x, const PackedWeight& w,
                       const py::array& residual, const std::optional<Floats>& x_scale) {
    OpArrays op = arrays();
    backend_->linear_residual({s.step, op.at(matrix(x)), x_scale ? floats(op, *x_scale) : nullptr,
                               w.weight, op.at(matrix(residual))});
    op.bring_back();
  }

  void norm_gate_up_silu(const StepArrays& s, const py::array& residual, const Floats& gain,
                         float eps, const PackedWeight& w, const PackedWeight& consumer,
                         const py::array& out, std::optional<Floats>& out_scale) {
    OpArrays op = arrays();
    const Norm norm = norm_of(op, gain, eps);
    backend_->norm_gate_up_silu({s.step, op.at(matrix(residual)), norm, w.weight, consumer.weight,
                                 op.at(matrix(out)), floats(op, out_scale)});
    op.bring_back();
  }

  void logits(const StepArrays& s, const py::array& residual, const Floats& gain, float eps,
              const PackedWeight& w, const py::array& out) {
    OpArrays op = arrays();
    const Norm norm = norm_of(op, gain, eps);
    backend_->logits({s.step, op.at(matrix(residual)), norm, w.weight, op.at(matrix(out))});
    op.bring_back();
  }

  // rows: one dict per logits row, keys as in SampleRow, and "ban": list of ids, "bias" and
  // "count": lists of (id, bias) and (id, generated).
  py::tuple sample(const StepArrays& s, const py::array& logits,
                   const std::vector<py::dict>& rows) {
    std::vector<SampleRow> list;
    std::vector<std::int32_t> ban;
    std::vector<LogitBias> bias;
    std::vector<TokenCount> count;
    std::vector<std::uint32_t> mask;
    for (const py::dict& d : rows) {
      SampleRow row;
      const auto get = [&](const char* key, auto& field) {
        if (d.contains(key)) field = d[key].cast<std::decay_t<decltype(field)>>();
      };
      get("temperature", row.temperature);
      get("top_p", row.top_p);
      get("min_p", row.min_p);
      get("top_k", row.top_k);
      get("logprobs", row.logprobs);
      get("given", row.given);
      get("seed", row.seed);
      row.ban_begin = static_cast<std::int32_t>(ban.size());
      if (d.contains("ban")) {
        for (auto id : d["ban"].cast<std::vector<std::int32_t>>()) ban.push_back(id);
      }
      row.ban_end = static_cast<std::int32_t>(ban.size());
      get("repetition_penalty", row.repetition_penalty);
      get("frequency_penalty", row.frequency_penalty);
      get("presence_penalty", row.presence_penalty);
      row.bias_begin = static_cast<std::int32_t>(bias.size());
      if (d.contains("bias")) {
        for (const auto& [id, value] : d["bias"].cast<std::vector<std::pair<int, float>>>()) {
          bias.push_back({id, value});
        }
      }
      row.bias_end = static_cast<std::int32_t>(bias.size());
      row.count_begin = static_cast<std::int32_t>(count.size());
      if (d.contains("count")) {
        for (const auto& [id, n] : d["count"].cast<std::vector<std::pair<int, int>>>()) {
          count.push_back({id, n});
        }
      }
      row.count_end = static_cast<std::int32_t>(count.size());
      if (d.contains("mask")) {  // words
        row.mask_begin = static_cast<std::int64_t>(mask.size());
        for (auto word : d["mask"].cast<std::vector<std::uint32_t>>()) mask.push_back(word);
      }
      list.push_back(row);
    }
    const auto n = static_cast<py::ssize_t>(rows.size());
    Ints id(n), top_id({n, py::ssize_t{kMaxLogprobs}});
    Floats logprob(n), top_logprob({n, py::ssize_t{kMaxLogprobs}});
    std::fill_n(logprob.mutable_data(), n, 77.0f);
    std::fill_n(top_id.mutable_data(), n * kMaxLogprobs, 77);
    std::fill_n(top_logprob.mutable_data(), n * kMaxLogprobs, 77.0f);
    const SampleInput input{list.data(), ban.data(), bias.data(), count.data(), mask.data()};
    OpArrays op = arrays();
    const auto at = [&op](auto& a) {
      return op.at(a.mutable_data(), static_cast<std::size_t>(a.size()));
    };
    const SampleOutput out{at(id), at(logprob), at(top_id), at(top_logprob)};
    backend_->sample({s.step, op.at(matrix(logits)), input, out});
    op.bring_back();
    return py::make_tuple(id, logprob, top_id, top_logprob);
  }

  void copy_blocks(const std::vector<std::int32_t>& pairs, const Pool& pool) {
    OpArrays op = arrays();
    const std::int32_t* at = op.at(pairs.data(), pairs.size());
    backend_->copy_blocks({at, static_cast<int>(pairs.size() / 2), pool.view});
    op.bring_back();
  }

  // The bytes of all blocks.
  void write_blocks(const Pool& pool, const py::array_t<std::uint8_t>& bytes) {
    backend_->upload(pool.view.data, bytes.data(), static_cast<std::size_t>(bytes.size()));
  }
  py::array_t<std::uint8_t> read_blocks(const Pool& pool) {
    py::array_t<std::uint8_t> out({pool.blocks, static_cast<py::ssize_t>(pool.view.block_bytes)});
    backend_->download(out.mutable_data(), pool.view.data, static_cast<std::size_t>(out.size()));
    backend_->wait();
    return out;
  }

  void accept(const StepArrays& s, const std::vector<std::int32_t>& sampled, SlotArrays& slots) {
    OpArrays op = arrays();
    backend_->accept({s.step, op.at(sampled.data(), sampled.size()), slots.slots});
    op.bring_back();
  }

 private:
  OpArrays arrays() { return {*backend_, in_place_}; }

  std::shared_ptr<Backend> backend_;
  bool in_place_ = true;
  Buffer scratch_;
};

// Classes of the module alone: two modules have them.
inline void bind_backend(py::module_& m) {
  py::class_<PackedWeight>(m, "PackedWeight", py::module_local());
  py::class_<Pool>(m, "Pool", py::module_local())
      .def_property_readonly("saturated", &Pool::saturated);
  const auto ints = [](const DeviceInts& values) {
    const std::vector<std::int32_t> v = values.host();
    return Ints(static_cast<py::ssize_t>(v.size()), v.data());
  };
  py::class_<SlotArrays>(m, "Slots", py::module_local())
      .def_property_readonly("length", [ints](SlotArrays& s) { return ints(s.length); })
      .def_property_readonly("pending", [ints](SlotArrays& s) { return ints(s.pending); })
      .def_property_readonly("block_table", [ints](SlotArrays& s) { return ints(s.block_table); });
  py::class_<StepArrays>(m, "Step", py::module_local())
      .def_property_readonly("ids", [ints](StepArrays& s) { return ints(s.ids); })
      .def_property_readonly("positions", [ints](StepArrays& s) { return ints(s.positions); })
      .def_property_readonly("sequence", [ints](StepArrays& s) { return ints(s.sequence); })
      .def_property_readonly("slot", [ints](StepArrays& s) { return ints(s.slot); })
      .def_property_readonly("cu_rows", [ints](StepArrays& s) { return ints(s.cu_rows); })
      .def_property_readonly("cu_logits", [ints](StepArrays& s) { return ints(s.cu_logits); })
      .def_property_readonly("logits_row", [ints](StepArrays& s) { return ints(s.logits_row); });
  py::class_<TestBackend>(m, "Backend", py::module_local())
      .def(py::init<const std::string&, int>(), py::arg("name"), py::arg("threads") = 2)
      .def("describe", &TestBackend::describe)
      .def_property_readonly("threads", &TestBackend::threads)
      .def_property_readonly("block_tokens", &TestBackend::block_tokens)
      .def("measure_read_bandwidth", &TestBackend::bandwidth)
      .def("measure_multiply_peak", &TestBackend::multiply_peak)
      .def("measure_int8_peak", &TestBackend::int8_peak)
      .def("scratch", &TestBackend::scratch)
      .def("scratch_bytes", &TestBackend::scratch_bytes)
      .def("pack", &TestBackend::pack, py::arg("parts"), py::arg("role"), py::arg("format"),
           py::arg("head_dim") = 0, py::arg("allow_nonfinite") = false, py::arg("quant") = "none",
           py::arg("input_scales") = std::vector<float>{},
           py::arg("minima") = std::vector<py::array>{}, py::arg("k") = 0)
      .def("kv", &TestBackend::kv)
      .def("slots", &TestBackend::slots)
      .def("copy_blocks", &TestBackend::copy_blocks)
      .def("write_blocks", &TestBackend::write_blocks)
      .def("read_blocks", &TestBackend::read_blocks)
      .def("begin", &TestBackend::begin)
      .def("embed", &TestBackend::embed)
      .def("norm_qkv_rope_store", &TestBackend::norm_qkv_rope_store, py::arg("step"),
           py::arg("residual"), py::arg("gain"), py::arg("eps"), py::arg("weight"), py::arg("cos"),
           py::arg("sin"), py::arg("pool"), py::arg("q"), py::arg("query_scale") = py::none())
      .def("attention", &TestBackend::attention, py::arg("step"), py::arg("q"), py::arg("pool"),
           py::arg("scale"), py::arg("consumer"), py::arg("out"), py::arg("out_scale") = py::none())
      .def("linear_residual", &TestBackend::linear_residual, py::arg("step"), py::arg("x"),
           py::arg("weight"), py::arg("residual"), py::arg("x_scale") = py::none())
      .def("norm_gate_up_silu", &TestBackend::norm_gate_up_silu, py::arg("step"),
           py::arg("residual"), py::arg("gain"), py::arg("eps"), py::arg("weight"),
           py::arg("consumer"), py::arg("out"), py::arg("out_scale") = py::none())
      .def("logits", &TestBackend::logits)
      .def("sample", &TestBackend::sample)
      .def("accept", &TestBackend::accept);
}

}  // namespace mmengine
