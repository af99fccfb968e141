// _testing_kernels: the stages of every backend on numpy arrays. Inputs and outputs are used in
// place, rows may lie apart (guard columns), and what is written is exactly what a stage writes.
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
#include "base/parallel.h"
#include "bindings/errors.h"
#include "kernels/cpu/launch.h"
#include "kernels/ref/launch.h"

namespace py = pybind11;
using namespace mmengine;

namespace {

using Ints = py::array_t<std::int32_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

DType dtype_of(const std::string& name) {
  for (DType t : {DType::f32, DType::bf16, DType::f16, DType::e4m3, DType::i8, DType::u8}) {
    if (name == dtype_name(t)) return t;
  }
  throw py::value_error("unknown dtype " + name);
}

Role role_of(const std::string& name) {
  const char* names[] = {"embed", "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"};
  for (int i = 0; i < 6; ++i) {
    if (name == names[i]) return static_cast<Role>(i);
  }
  throw py::value_error("unknown role " + name);
}

InputQuant quant_of(const std::string& name) {
  if (name == "none") return InputQuant::none;
  if (name == "fixed") return InputQuant::fixed;
  if (name == "per_token") return InputQuant::per_token;
  throw py::value_error("unknown quantisation " + name);
}

WeightFormat format_of(const std::string& name) {
  if (name == "f32") return WeightFormat::f32;
  if (name == "bf16") return WeightFormat::bf16;
  if (name == "fp8") return WeightFormat::fp8;
  if (name == "int8") return WeightFormat::int8;
  if (name == "int4") return WeightFormat::int4;
  throw py::value_error("unknown format " + name);
}

// A float32 matrix whose rows may be strided; written in place.
TensorView matrix(const py::array& a) {
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

struct Pool {  // blocks of one layer, filled with 0xff: NaN
  Buffer buffer;
  KvView view;
  std::int64_t saturated = 0;
};

struct SlotArrays {
  std::vector<std::int32_t> length, pending, block_table;
  Slots slots;
  SlotArrays(int count, int max_blocks)
      : length(count, 0), pending(count, -1), block_table(std::size_t(count) * max_blocks, 0) {
    slots = {length.data(), pending.data(), block_table.data(), count, max_blocks};
  }
};

struct StepArrays {
  std::vector<std::int32_t> ids, positions, sequence, cu_rows, slot, cu_logits, logits_row;
  Step step;
};

class TestBackend {
 public:
  TestBackend(const std::string& name, int threads) {
    const auto colon = name.find(':');
    BackendOptions options;
    options.kind = name.substr(0, colon) == "ref" ? BackendKind::ref : BackendKind::cpu;
    if (colon != std::string::npos) options.instruction_set = name.substr(colon + 1);
    options.threads = threads;
    backend_ = make_backend(options);
    scratch(64 << 20);
  }

  void scratch(std::size_t bytes) {
    scratch_ = backend_->allocate(bytes);
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
    auto* data = static_cast<std::uint8_t*>(packed->buffer.data());
    std::fill_n(data, bytes + guard, std::uint8_t{0xa5});
    packed->weight =
        backend_->pack(host, spec, {data, DType::u8, {static_cast<std::int64_t>(bytes)}, 1});
    for (std::size_t i = bytes; i < bytes + guard; ++i) {
      MM_CHECK(data[i] == 0xa5, "pack", "wrote byte ", i, " of ", bytes);
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
    pool->buffer = backend_->allocate(bytes * blocks);
    std::fill_n(static_cast<std::uint8_t*>(pool->buffer.data()), bytes * blocks,
                std::uint8_t{0xff});
    pool->view = {static_cast<std::byte*>(pool->buffer.data()),
                  static_cast<std::int64_t>(bytes),
                  dtype_of(dtype),
                  block_tokens(),
                  kv_heads,
                  head_dim,
                  &pool->saturated};
    return pool;
  }

  std::unique_ptr<StepArrays> begin(SlotArrays& slots, std::vector<std::int32_t> row_id,
                                    std::vector<std::int32_t> cu_rows,
                                    std::vector<std::int32_t> slot, std::vector<std::int32_t> start,
                                    std::vector<std::int32_t> cu_logits,
                                    std::vector<std::int32_t> logits_row,
                                    std::vector<std::int32_t> table_update) {
    auto s = std::make_unique<StepArrays>();
    const std::size_t rows = row_id.size(), sequences = slot.size(), logits = logits_row.size();
    for (auto* v : {&s->ids, &s->positions, &s->sequence}) v->assign(rows, -7);
    for (auto* v : {&s->cu_rows, &s->cu_logits}) v->assign(sequences + 1, -7);
    s->slot.assign(sequences, -7);
    s->logits_row.assign(logits, -7);
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
    const StepInput input{row_id.data(),    cu_rows.data(),    slot.data(),        start.data(),
                          cu_logits.data(), logits_row.data(), table_update.data()};
    backend_->begin({input, slots.slots, s->step});
    return s;
  }

  void embed(const StepArrays& s, const PackedWeight& table, const py::array& out) {
    backend_->embed({s.step, table.weight, matrix(out)});
  }

  static Norm norm_of(const Floats& gain, float eps) {
    return {{const_cast<float*>(gain.data()), DType::f32, {gain.size()}, 1}, eps};
  }

  void norm_qkv_rope_store(const StepArrays& s, const py::array& residual, const Floats& gain,
                           float eps, const PackedWeight& w, const Floats& cos, const Floats& sin,
                           const Pool& pool, const py::array& q,
                           const std::optional<Floats>& query_scale) {
    const Norm norm = norm_of(gain, eps);
    const RopeTable rope{cos.data(), sin.data(), query_scale ? query_scale->data() : nullptr};
    backend_->norm_qkv_rope_store(
        {s.step, matrix(residual), norm, w.weight, rope, pool.view, matrix(q)});
  }

  void attention(const StepArrays& s, const py::array& q, const Pool& pool, float scale,
                 const PackedWeight& consumer, const py::array& out,
                 std::optional<Floats>& out_scale) {
    backend_->attention({s.step, matrix(q), pool.view, scale, consumer.weight, matrix(out),
                         out_scale ? out_scale->mutable_data() : nullptr});
  }

  void linear_residual(const StepArrays& s, const py::array& x, const PackedWeight& w,
                       const py::array& residual, const std::optional<Floats>& x_scale) {
    backend_->linear_residual(
        {s.step, matrix(x), x_scale ? x_scale->data() : nullptr, w.weight, matrix(residual)});
  }

  void norm_gate_up_silu(const StepArrays& s, const py::array& residual, const Floats& gain,
                         float eps, const PackedWeight& w, const PackedWeight& consumer,
                         const py::array& out, std::optional<Floats>& out_scale) {
    const Norm norm = norm_of(gain, eps);
    backend_->norm_gate_up_silu({s.step, matrix(residual), norm, w.weight, consumer.weight,
                                 matrix(out), out_scale ? out_scale->mutable_data() : nullptr});
  }

  void logits(const StepArrays& s, const py::array& residual, const Floats& gain, float eps,
              const PackedWeight& w, const py::array& out) {
    const Norm norm = norm_of(gain, eps);
    backend_->logits({s.step, matrix(residual), norm, w.weight, matrix(out)});
  }

  // rows: one dict per logits row, keys as in SampleRow, and "ban": list of ids, "bias" and
  // "count": lists of (id, bias) and (id, generated).
  py::tuple sample(const StepArrays& s, const py::array& logits,
                   const std::vector<py::dict>& rows) {
    std::vector<SampleRow> list;
    std::vector<std::int32_t> ban;
    std::vector<LogitBias> bias;
    std::vector<TokenCount> count;
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
      list.push_back(row);
    }
    const auto n = static_cast<py::ssize_t>(rows.size());
    Ints id(n), top_id({n, py::ssize_t{kMaxLogprobs}});
    Floats logprob(n), top_logprob({n, py::ssize_t{kMaxLogprobs}});
    std::fill_n(logprob.mutable_data(), n, 77.0f);
    std::fill_n(top_id.mutable_data(), n * kMaxLogprobs, 77);
    const SampleInput input{list.data(), ban.data(), bias.data(), count.data()};
    const SampleOutput out{id.mutable_data(), logprob.mutable_data(), top_id.mutable_data(),
                           top_logprob.mutable_data()};
    backend_->sample({s.step, matrix(logits), input, out});
    return py::make_tuple(id, logprob, top_id, top_logprob);
  }

  void accept(const StepArrays& s, const std::vector<std::int32_t>& sampled, SlotArrays& slots) {
    backend_->accept({s.step, sampled.data(), slots.slots});
  }

 private:
  std::unique_ptr<Backend> backend_;
  Buffer scratch_;
};

std::vector<std::string> backends() {
  std::vector<std::string> names{"ref"};
  for (const cpu::Kernels* level : cpu::supported_kernels()) {
    names.push_back(std::string("cpu:") + level->name);
  }
  return names;
}

Floats exp_of(const std::string& level, const Floats& x) {
  for (const cpu::Kernels* kernels : cpu::supported_kernels()) {
    if (level != std::string("cpu:") + kernels->name) continue;
    Floats out(x.size());
    kernels->exp(x.data(), x.size(), out.mutable_data());
    return out;
  }
  throw py::value_error("unknown level " + level);
}

// (a copy of x as a weight with this scale of its input wants it, what its outputs are multiplied
// by); no scale: the row's own.
std::pair<Floats, float> quantise(const std::string& level, const Floats& x,
                                  std::optional<float> scale) {
  Floats out(x.size());
  std::copy_n(x.data(), x.size(), out.mutable_data());
  if (level == "ref") {
    Weight consumer;
    consumer.quant = scale ? InputQuant::fixed : InputQuant::per_token;
    consumer.input_scale = scale.value_or(1.0f);
    const float own = ref::quantise_input(out.mutable_data(), x.size(), consumer);
    return {out, own};
  }
  for (const cpu::Kernels* kernels : cpu::supported_kernels()) {
    if (level != std::string("cpu:") + kernels->name) continue;
    if (!scale) return {out, kernels->quantise_row(out.mutable_data(), x.size())};
    kernels->quantise(out.mutable_data(), x.size(), *scale);
    return {out, 1.0f};
  }
  throw py::value_error("unknown level " + level);
}

class TestPool {
 public:
  explicit TestPool(int threads) : pool_(threads) {}
  std::vector<std::int64_t> shares(std::int64_t tasks) const {
    std::vector<std::int64_t> begins;
    for (int t = 0; t <= pool_.threads(); ++t) begins.push_back(pool_.share(tasks, t));
    return begins;
  }

  int threads() const { return pool_.threads(); }

  // How often each task ran in `loops` loops, and whether two calls ever shared a thread number.
  std::pair<std::vector<int>, bool> count(std::int64_t tasks, int loops) {
    std::vector<std::atomic<int>> seen(static_cast<std::size_t>(tasks));
    std::vector<std::atomic<int>> busy(static_cast<std::size_t>(threads()));
    std::atomic<bool> shared{false};
    for (int i = 0; i < loops; ++i) {
      pool_.parallel_for(tasks, [&](std::int64_t begin, std::int64_t end, int thread) {
        if (busy[static_cast<std::size_t>(thread)].fetch_add(1) != 0) shared = true;
        for (std::int64_t t = begin; t < end; ++t) seen[static_cast<std::size_t>(t)].fetch_add(1);
        busy[static_cast<std::size_t>(thread)].fetch_sub(1);
      });
    }
    return {{seen.begin(), seen.end()}, shared};
  }

  void fail_at(std::int64_t tasks, std::int64_t task) {
    pool_.parallel_for(tasks, [&](std::int64_t begin, std::int64_t end, int) {
      if (begin <= task && task < end) fail(ErrorCode::request, "task", "number ", task, " fails");
    });
  }

 private:
  ThreadPool pool_;
};

}  // namespace

PYBIND11_MODULE(MM_MODULE, m) {
  register_errors(m);
  m.def("backends", &backends);
  m.def("exp", &exp_of);
  m.def("quantise", &quantise);
  m.def("uniform", &ref::uniform);
  m.def("available_processors", &available_processors);
  py::class_<PackedWeight>(m, "PackedWeight");
  py::class_<Pool>(m, "Pool").def_readonly("saturated", &Pool::saturated);
  const auto ints = [](const std::vector<std::int32_t>& v) {
    return Ints(static_cast<py::ssize_t>(v.size()), v.data());
  };
  py::class_<SlotArrays>(m, "Slots")
      .def(py::init<int, int>())
      .def_property_readonly("length", [ints](SlotArrays& s) { return ints(s.length); })
      .def_property_readonly("pending", [ints](SlotArrays& s) { return ints(s.pending); })
      .def_property_readonly("block_table", [ints](SlotArrays& s) { return ints(s.block_table); });
  py::class_<StepArrays>(m, "Step")
      .def_property_readonly("ids", [ints](StepArrays& s) { return ints(s.ids); })
      .def_property_readonly("positions", [ints](StepArrays& s) { return ints(s.positions); })
      .def_property_readonly("sequence", [ints](StepArrays& s) { return ints(s.sequence); })
      .def_property_readonly("slot", [ints](StepArrays& s) { return ints(s.slot); })
      .def_property_readonly("cu_rows", [ints](StepArrays& s) { return ints(s.cu_rows); })
      .def_property_readonly("cu_logits", [ints](StepArrays& s) { return ints(s.cu_logits); })
      .def_property_readonly("logits_row", [ints](StepArrays& s) { return ints(s.logits_row); });
  py::class_<TestPool>(m, "ThreadPool")
      .def(py::init<int>())
      .def_property_readonly("threads", &TestPool::threads)
      .def("count", &TestPool::count)
      .def("fail_at", &TestPool::fail_at)
      .def("shares", &TestPool::shares);
  py::class_<TestBackend>(m, "Backend")
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
