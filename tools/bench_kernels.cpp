// Speed of the cpu backend's product: GB/s of packed weights and GFLOPS per shape, format and
// number of rows, each as a share of what this machine was measured to read and to multiply.
// Usage: bench_kernels [threads [format [rows]]]. Best of several runs; weights are cold (many
// copies in a row). With one thread the clock is the process's own processor time, which neighbours
// disturb less.
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace {

using namespace mmengine;
// Seconds, wall or processor time.
class Stopwatch {
 public:
  explicit Stopwatch(int threads)
      : clock_(threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC), start_(now()) {}
  double seconds() const { return now() - start_; }

 private:
  double now() const {
    timespec t{};
    clock_gettime(clock_, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  clockid_t clock_;
  double start_;
};

struct Matrix {
  std::vector<float> data;
  TensorView view;
  Matrix(std::int64_t rows, std::int64_t columns)
      : data(static_cast<std::size_t>(rows * columns), 0.5f),
        view{data.data(), DType::f32, {rows, columns}, columns} {}
};

struct Shape2 {
  std::int64_t n, k;
};

}  // namespace

int main(int argc, char** argv) {
  BackendOptions options;
  options.threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const auto backend = make_backend(options);
  const int threads = backend->threads();
  const double bandwidth = backend->measure_read_bandwidth();
  const double peak = backend->measure_multiply_peak();
  const double int8_peak = backend->measure_int8_peak();
  std::cout << backend->describe() << ": reads " << bandwidth / 1e9 << " GB/s, multiplies "
            << peak / 1e9 << " GFLOPS (f32) and " << int8_peak / 1e9
            << " GOPS (int8) in registers\n";
  Buffer scratch = backend->allocate(64 << 20);
  backend->set_scratch({scratch.data(), DType::u8, {64 << 20}, 1});
  const char* names[] = {"f32", "bf16", "fp8", "int8", "int4"};
  const std::string only_format = argc > 2 ? argv[2] : "";
  const int only_rows = argc > 3 ? std::atoi(argv[3]) : 0;
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::fp8,
                              WeightFormat::int8, WeightFormat::int4}) {
    if (!only_format.empty() && only_format != names[static_cast<int>(format)]) continue;
    for (const Shape2 shape : {Shape2{576, 1536}, {1536, 576}, {3072, 576}, {49152, 576}}) {
      const WeightSpec spec{Role::down_proj, shape.n, shape.k, format, 0};
      const std::size_t bytes = backend->traits().packed_bytes(spec);
      const std::size_t copies = std::max<std::size_t>(1, (std::size_t{256} << 20) / bytes);
      std::vector<float> values(static_cast<std::size_t>(shape.n * shape.k));
      std::uint32_t state = 1;
      for (float& v : values)
        v = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f - 0.5f;
      HostWeight host;
      host.parts.emplace_back().weight = {values.data(), DType::f32, {shape.n, shape.k}};
      const Buffer memory = backend->allocate(bytes * copies);
      std::vector<Weight> weights;
      for (std::size_t c = 0; c < copies; ++c) {
        void* data = static_cast<std::byte*>(memory.data()) + c * bytes;
        weights.push_back(
            backend->pack(host, spec, {data, DType::u8, {static_cast<std::int64_t>(bytes)}, 1}));
      }
      for (int rows : {1, 2, 3, 4, 8, 16, 64, 512}) {
        if (only_rows != 0 && only_rows != rows) continue;
        Matrix x(rows, shape.k), residual(rows, shape.n);
        Step step;
        step.rows = rows;
        const double flops = 2.0 * rows * static_cast<double>(shape.n * shape.k);
        const std::size_t calls =
            std::clamp<std::size_t>(static_cast<std::size_t>(2e10 / flops), 1, copies);
        double best = 1e9;
        for (int pass = 0; pass < 5; ++pass) {
          const Stopwatch watch(threads);
          for (std::size_t c = 0; c < calls; ++c) {
            backend->linear_residual({step, x.view, nullptr, weights[c], residual.view});
          }
          best = std::min(best, watch.seconds() / static_cast<double>(calls));
        }
        std::cout << std::fixed << std::setprecision(1) << names[static_cast<int>(format)] << " ["
                  << shape.n << ", " << shape.k << "] rows " << rows << ": " << best * 1e6
                  << " us, " << static_cast<double>(bytes) / best / 1e9 << " GB/s ("
                  << static_cast<double>(bytes) / best / bandwidth * 100 << " %), "
                  << flops / best / 1e9 << " GFLOPS ("
                  << flops / best / (has_groups(format) ? int8_peak : peak) * 100 << " %)\n";
      }
    }
  }
  return 0;
}
