// _testing_kernels: the stages of every backend on numpy arrays (test_backend.h), and the pieces of
// kernels that have no stage of their own.
#include <algorithm>
#include <atomic>
#include <numeric>
#include <utility>

#include "backend/cuda_device.h"
#include "base/parallel.h"
#include "bindings/errors.h"
#include "kernels/cpu/launch.h"
#include "kernels/cuda/launch.h"
#include "kernels/ref/launch.h"
#include "runtime/graph_cache.h"
#include "test_backend.h"

namespace py = pybind11;
using namespace mmengine;

namespace {

std::vector<std::string> backends() {
  std::vector<std::string> names{"ref"};
  for (const cpu::Kernels* level : cpu::supported_kernels()) {
    names.push_back(std::string("cpu:") + level->name);
  }
  try {
    BackendOptions cuda;
    cuda.kind = BackendKind::cuda;
    make_backend(cuda);
    names.emplace_back("cuda");
  } catch (const Error& error) {  // no device here
    if (error.code() != ErrorCode::unsupported_model) throw;
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

std::pair<Floats, float> quantise_on_cuda(const Floats& x, std::optional<float> scale) {
  BackendOptions options;
  options.kind = BackendKind::cuda;
  const std::unique_ptr<Backend> backend = make_backend(options);
  Weight consumer;
  consumer.quant = scale ? InputQuant::fixed : InputQuant::per_token;
  consumer.input_scale = scale.value_or(1.0f);
  Floats out(x.size());
  std::copy_n(x.data(), x.size(), out.mutable_data());
  float own = 1;
  OpArrays op(*backend, false);
  const auto n = static_cast<std::int64_t>(x.size());
  const TensorView row{
      op.at(out.mutable_data(), static_cast<std::size_t>(n)), DType::f32, {1, n}, n};
  cuda::quantise_rows(row, consumer, op.at(&own, 1), nullptr);
  cuda::wait_for(nullptr);
  op.bring_back();
  return {out, own};
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
  if (level == "cuda") return quantise_on_cuda(x, scale);
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

// A GraphCache of up to `most` rows whose pass is `accept`: the rows of its passes, what 0 ..
// most + 1 rows are padded to, and the lengths of the slots when it was made and after a replay of
// three rows for each of two sets of positions.
py::tuple graph_cache(const std::string& device, int most) {
  BackendOptions options;
  if (device == "cuda") options.kind = BackendKind::cuda;
  const std::unique_ptr<Backend> backend = make_backend(options);
  using Row = std::vector<std::int32_t>;
  const auto count = static_cast<std::size_t>(most) + 1, bytes = count * sizeof(std::int32_t);
  const Buffer positions = backend->allocate(bytes), cu_rows = backend->allocate(bytes),
               slot = backend->allocate(bytes), cu_logits = backend->allocate(bytes),
               length = backend->allocate(bytes);
  Row ascending(count);
  std::iota(ascending.begin(), ascending.end(), 0);
  backend->upload(cu_rows.data(), ascending.data(), bytes);
  backend->upload(slot.data(), ascending.data(), bytes);
  Step step;
  step.positions = static_cast<std::int32_t*>(positions.data());
  step.cu_rows = static_cast<std::int32_t*>(cu_rows.data());
  step.slot = static_cast<std::int32_t*>(slot.data());
  step.cu_logits = static_cast<std::int32_t*>(cu_logits.data());
  Slots slots;
  slots.length = static_cast<std::int32_t*>(length.data());
  slots.slots = most;

  Row passes, padded;
  const GraphCache graphs(*backend, most, [&](int rows) {
    passes.push_back(rows);
    step.rows = step.sequences = rows;
    backend->accept({step, nullptr, slots});
  });
  for (int rows = 0; rows <= most + 1; ++rows) padded.push_back(graphs.padded(rows));
  std::vector<Row> lengths;
  const auto note = [&] {
    Row now(count);
    backend->download(now.data(), length.data(), bytes);
    backend->wait();
    lengths.push_back(now);
  };
  note();
  for (int first = 10; first <= 20 && graphs.padded(3) > 0; first += 10) {
    Row values(count);
    std::iota(values.begin(), values.end(), first);
    backend->upload(positions.data(), values.data(), bytes);
    graphs.replay(graphs.padded(3));
    note();
  }
  return py::make_tuple(passes, padded, lengths);
}

}  // namespace

PYBIND11_MODULE(MM_MODULE, m) {
  register_errors(m);
  m.def("backends", &backends);
  m.def("exp", &exp_of);
  m.def("graph_cache", &graph_cache);
  m.def("quantise", &quantise);
  m.def("uniform", &ref::uniform);
  m.def("available_processors", &available_processors);
  py::class_<TestPool>(m, "ThreadPool")
      .def(py::init<int>())
      .def_property_readonly("threads", &TestPool::threads)
      .def("count", &TestPool::count)
      .def("fail_at", &TestPool::fail_at)
      .def("shares", &TestPool::shares);
  bind_backend(m);
}
