// Speed of a backend's products and of decode attention: GB/s of weights or KV and GFLOPS, each as
// a share of what this machine was measured to read and to multiply.
// Usage: bench_kernels [cpu|cuda [threads [format [rows]]]]
// Shapes: cpu those of SmolLM2-135M, cuda those of Mistral Medium 3.5. The best of several runs;
// weights are cold (many copies in a row). With one thread of cpu the clock is the process's own
// processor time, which neighbours disturb less.
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iomanip>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/check.h"

namespace {

using namespace mmengine;

constexpr std::size_t kColdBytes = std::size_t{256} << 20;  // past the caches

class Stopwatch {
 public:
  explicit Stopwatch(bool processor_time)
      : clock_(processor_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC), start_(now()) {}
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

struct Bench {
  explicit Bench(const BackendOptions& options)
      : backend(make_backend(options)),
        processor_time(options.kind == BackendKind::cpu && backend->threads() == 1),
        bandwidth(backend->measure_read_bandwidth()),
        multiply_peak(backend->measure_multiply_peak()),
        int8_peak(backend->measure_int8_peak()) {}

  std::unique_ptr<Backend> backend;
  bool processor_time;
  double bandwidth, multiply_peak, int8_peak;

  // Seconds of op(i), 0 <= i < calls.
  template <class Op>
  double seconds(std::size_t calls, Op&& op) const {
    double best = 1e9;
    for (int pass = 0; pass < 5; ++pass) {
      backend->wait();
      const Stopwatch watch(processor_time);
      for (std::size_t c = 0; c < calls; ++c) op(c);
      backend->wait();
      best = std::min(best, watch.seconds() / static_cast<double>(calls));
    }
    return best;
  }
  void print(const std::string& what, double seconds, double bytes, double flops,
             double peak) const {
    std::cout << std::fixed << std::setprecision(1) << what << ": " << seconds * 1e6 << " us, "
              << bytes / seconds / 1e9 << " GB/s (" << bytes / seconds / bandwidth * 100 << " %), "
              << flops / seconds / 1e9 << " GFLOPS (" << flops / seconds / peak * 100 << " %)\n";
  }
};

struct Matrix {  // f32, of the backend
  Buffer buffer;
  TensorView view;
  Matrix(Backend& backend, std::int64_t rows, std::int64_t columns)
      : buffer(backend.allocate(static_cast<std::size_t>(rows * columns) * sizeof(float))),
        view{buffer.data(), DType::f32, {rows, columns}, columns} {
    const std::vector<float> values(static_cast<std::size_t>(rows * columns), 0.5f);
    backend.upload(view.data, values.data(), values.size() * sizeof(float));
    backend.wait();
  }
};

struct Ints {
  Buffer buffer;
  Ints(Backend& backend, const std::vector<std::int32_t>& values)
      : buffer(backend.allocate(values.size() * sizeof(std::int32_t))) {
    backend.upload(buffer.data(), values.data(), buffer.bytes());
    backend.wait();
  }
  std::int32_t* data() const { return static_cast<std::int32_t*>(buffer.data()); }
};

struct Weights {  // copies of one matrix
  Buffer memory;
  std::vector<Weight> copies;
  double bytes;
  Weights(Backend& backend, const WeightSpec& spec, std::size_t all_bytes) {
    const std::size_t one = backend.traits().packed_bytes(spec);
    const std::size_t count = std::max<std::size_t>(1, all_bytes / one);
    bytes = static_cast<double>(one);
    memory = backend.allocate(one * count);
    HostWeight host;  // random values
    HostTensor& weight = host.parts.emplace_back().weight;
    weight.shape = {spec.n, spec.k};
    weight.dtype = spec.format == WeightFormat::fp8 ? DType::e4m3 : DType::bf16;
    weight.seed = synthetic_seed("bench_kernels");
    host.parts[0].source = {"bench_kernels", "weight"};
    for (std::size_t c = 0; c < count; ++c) {
      void* data = static_cast<std::byte*>(memory.data()) + c * one;
      copies.push_back(
          backend.pack(host, spec, {data, DType::u8, {static_cast<std::int64_t>(one)}, 1}));
    }
  }
};

void bench_products(const Bench& bench, const WeightSpec& spec, const std::string& name,
                    const std::vector<int>& all_rows) {
  Backend& backend = *bench.backend;
  const Weights weights(backend, spec, kColdBytes);
  for (const int rows : all_rows) {
    const Matrix x(backend, rows, spec.k), residual(backend, rows, spec.n);
    Step step;
    step.rows = rows;
    const double flops = 2.0 * rows * static_cast<double>(spec.n * spec.k);
    const auto calls = std::clamp<std::size_t>(static_cast<std::size_t>(2e10 / flops), 1,
                                               weights.copies.size());
    const double seconds = bench.seconds(calls, [&](std::size_t c) {
      backend.linear_residual({step, x.view, nullptr, weights.copies[c], residual.view});
    });
    bench.print(name + " [" + std::to_string(spec.n) + ", " + std::to_string(spec.k) + "] rows " +
                    std::to_string(rows),
                seconds, weights.bytes, flops,
                has_groups(spec.format) ? bench.int8_peak : bench.multiply_peak);
  }
}

struct Heads {
  int query, kv, dim;
};

// One row of a sequence at the end of its context, KV of zeros.
void bench_attention(const Bench& bench, const Heads& heads, DType kv_dtype, int context) {
  Backend& backend = *bench.backend;
  const int tokens = backend.traits().block_tokens(), blocks = (context + tokens - 1) / tokens;
  KvView kv;
  kv.dtype = kv_dtype;
  kv.block_tokens = tokens;
  kv.num_kv_heads = heads.kv;
  kv.head_dim = heads.dim;
  kv.block_bytes = static_cast<std::int64_t>(backend.traits().kv_block_bytes(
      {1, heads.kv, heads.dim, tokens, kv_dtype}));
  const auto one = static_cast<std::size_t>(kv.block_bytes) * static_cast<std::size_t>(blocks);
  const std::size_t count = std::max<std::size_t>(1, kColdBytes / one);
  const Buffer pool = backend.allocate(one * count + static_cast<std::size_t>(kv.block_bytes));
  const Buffer saturated = backend.allocate(sizeof(std::int64_t));
  kv.data = static_cast<std::byte*>(pool.data());
  kv.saturated = static_cast<std::int64_t*>(saturated.data());

  std::vector<std::int32_t> table(static_cast<std::size_t>(blocks) * count);
  for (std::size_t b = 0; b < table.size(); ++b) table[b] = static_cast<std::int32_t>(b) + 1;
  const Ints block_table(backend, table), position(backend, {context - 1}), zero(backend, {0}),
      cu_rows(backend, {0, 1});
  const std::int64_t columns = std::int64_t{heads.query} * heads.dim;
  const Matrix q(backend, 1, columns), out(backend, 1, columns);
  const Weights consumer(backend, {Role::o_proj, 1, columns, WeightFormat::bf16, 0}, 0);
  Step step;
  step.rows = step.sequences = 1;
  step.positions = position.data();
  step.sequence = zero.data();
  step.cu_rows = cu_rows.data();
  step.slot = zero.data();
  step.max_blocks = blocks;
  const double seconds = bench.seconds(count, [&](std::size_t c) {
    step.block_table = block_table.data() + c * static_cast<std::size_t>(blocks);
    backend.attention({step, q.view, kv, 0.1f, consumer.copies[0], out.view, nullptr});
  });
  const double elements = 2.0 * context * heads.kv * heads.dim;
  bench.print(std::string("attention, KV ") + (kv_dtype == DType::bf16 ? "bf16" : "fp8") +
                  ", 1 row, context " + std::to_string(context),
              seconds, elements * static_cast<double>(dtype_bytes(kv_dtype)),
              elements * 2 * heads.query / heads.kv, bench.multiply_peak);
}

void run(int argc, char** argv) {
  const std::string device = argc > 1 ? argv[1] : "cpu";
  if (device != "cpu" && device != "cuda") {
    fail(ErrorCode::usage, "bench_kernels", "expected cpu or cuda, got ", device);
  }
  const bool cuda = device == "cuda";
  BackendOptions options;
  options.kind = cuda ? BackendKind::cuda : BackendKind::cpu;
  options.threads = argc > 2 ? std::atoi(argv[2]) : 0;
  const std::string only_format = argc > 3 ? argv[3] : "";
  const int only_rows = argc > 4 ? std::atoi(argv[4]) : 0;
  const Bench bench(options);
  std::cout << bench.backend->describe() << ": reads " << bench.bandwidth / 1e9
            << " GB/s, multiplies " << bench.multiply_peak / 1e9 << " GFLOPS (floats) and "
            << bench.int8_peak / 1e9 << " GOPS (int8) in registers\n";
  const auto scratch_bytes = std::int64_t{cuda ? 2048 : 64} << 20;
  const Buffer scratch = bench.backend->allocate(static_cast<std::size_t>(scratch_bytes));
  bench.backend->set_scratch({scratch.data(), DType::u8, {scratch_bytes}, 1});

  struct Format {
    WeightFormat format;
    const char* name;
    bool on_cuda;
  };
  struct Shape2 {
    std::int64_t n, k;
  };
  const std::vector<Shape2> shapes =
      cuda ? std::vector<Shape2>{{14336, 12288}, {12288, 12288}, {57344, 12288}, {12288, 28672}}
           : std::vector<Shape2>{{576, 1536}, {1536, 576}, {3072, 576}, {49152, 576}};
  std::vector<int> rows = cuda ? std::vector<int>{1, 8, 64, 512, 2048, 8192}
                               : std::vector<int>{1, 2, 3, 4, 8, 16, 64, 512};
  if (only_rows != 0) rows = {only_rows};
  for (const Format& format : {Format{WeightFormat::f32, "f32", false},
                               {WeightFormat::bf16, "bf16", true},
                               {WeightFormat::fp8, "fp8", true},
                               {WeightFormat::int8, "int8", false},
                               {WeightFormat::int4, "int4", false}}) {
    if (cuda && !format.on_cuda) continue;
    if (!only_format.empty() && only_format != format.name) continue;
    for (const Shape2& shape : shapes) {
      bench_products(bench, {Role::down_proj, shape.n, shape.k, format.format, 0}, format.name,
                     rows);
    }
  }
  const Heads heads = cuda ? Heads{96, 8, 128} : Heads{9, 3, 64};
  for (const DType kv : {DType::bf16, DType::e4m3}) {
    for (const int context : {1024, 8192, 32768}) bench_attention(bench, heads, kv, context);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "bench_kernels: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
