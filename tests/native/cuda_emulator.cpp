// _testing_cuda_emulator: the probes of tests/emulator on numpy arrays, and the orders in which the
// emulated device runs what it is given.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "backend/cuda_device.h"
#include "bindings/errors.h"
#include "emulator/machine.h"
#include "emulator/probes.h"
#include "test_backend.h"

namespace py = pybind11;
using namespace mmengine;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void set_order(const std::string& order, std::uint64_t seed, int multiprocessors) {
  emulator::Options& options = emulator::options();
  const char* names[] = {"ascending", "descending", "shuffled", "warps"};
  const auto* found = std::find(std::begin(names), std::end(names), order);
  if (found == std::end(names)) throw py::value_error("unknown order " + order);
  options.order = static_cast<emulator::Order>(found - std::begin(names));
  options.seed = seed;
  options.multiprocessors = multiprocessors;
}

// Captured, then replayed so many times.
void reverse_captured(const Array<float>& x, Array<float>& out, int replays) {
  const cuda::Stream stream = cuda::make_stream();
  const int blocks = static_cast<int>(x.size() / 128);
  const cuda::Graph graph = cuda::capture(stream, [&] {
    probes::run_reverse(true, blocks, x.data(), out.mutable_data(), stream);
    probes::run_reverse(true, blocks, out.data(), out.mutable_data(), stream);
  });
  for (int i = 0; i < replays; ++i) cuda::replay(graph, stream);
  cuda::wait_for(stream);
  cuda::destroy_graph(graph);
  cuda::destroy_stream(stream);
}

void check_device(int driver, int runtime, int count, int index, int major, int minor) {
  cuda::DeviceFacts facts;
  facts.driver_version = driver;
  facts.runtime_version = runtime;
  facts.count = count;
  facts.index = index;
  facts.name = "Some GPU";
  facts.major = major;
  facts.minor = minor;
  cuda::check_device(facts);
}

}  // namespace

PYBIND11_MODULE(MM_MODULE, m) {
  register_errors(m);
  bind_backend(m);
  m.def("check_device", check_device);
  m.def("set_order", set_order, py::arg("order"), py::arg("seed") = 0,
        py::arg("multiprocessors") = 6);
  m.def("mma", [](const Array<std::uint32_t>& a, const Array<std::uint32_t>& b, Array<float>& d,
                  bool bf16) { probes::run_mma(a.data(), b.data(), d.mutable_data(), bf16); });
  m.def("load_matrix", [](int matrices, bool transposed, const Array<std::uint16_t>& data,
                          const Array<int>& row) {
    Array<std::uint32_t> out({32, matrices});
    probes::run_load_matrix(matrices, transposed, data.data(), row.data(), out.mutable_data());
    return out;
  });
  m.def("shuffle", [](const Array<float>& x) {
    Array<float> out({7, 64});
    probes::run_shuffle(x.data(), out.mutable_data());
    return out;
  });
  m.def("reverse", [](bool barrier, const Array<float>& x) {
    Array<float> out(x.size());
    const int blocks = static_cast<int>(x.size() / 128);
    probes::run_reverse(barrier, blocks, x.data(), out.mutable_data(), nullptr);
    return out;
  });
  m.def("reverse_captured", reverse_captured);
  m.def("copy_async", [](bool wait, const Array<float>& x, int valid) {
    Array<float> out(256);
    probes::run_copy_async(wait, x.data(), out.mutable_data(), valid);
    return out;
  });
  m.def("copy_bulk", [](bool wait_full, bool wait_empty, const Array<float>& x) {
    Array<float> out({x.shape(0), x.shape(1)});
    probes::run_copy_bulk(wait_full, wait_empty, x.data(), out.mutable_data(),
                          static_cast<int>(x.shape(0)));
    return out;
  });
  m.def("turns", [](int blocks, bool together) {
    std::uint32_t flag = 0;
    float sum = 0;
    probes::run_turns(blocks, together, &flag, &sum);
    return sum;
  });
  m.def("named_barrier", [] {
    Array<float> out(64);
    probes::run_named_barrier(out.mutable_data());
    return out;
  });
  m.def("wrong", [](int what, int threads) {
    Array<float> out(64);
    probes::run_wrong(what, threads, out.mutable_data());
  });
  m.def("conversions", [](const Array<float>& x) {
    Array<std::uint32_t> out({x.size(), py::ssize_t{8}});
    probes::run_conversions(x.data(), static_cast<int>(x.size()), out.mutable_data());
    return out;
  });
}
