#include "backend/cpu_backend.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>

#include "backend/best_rate.h"
#include "backend/cpu_attention.h"
#include "backend/cpu_gemm.h"
#include "backend/cpu_pack.h"
#include "backend/cpu_pack_groups.h"
#include "base/check.h"
#include "base/memory.h"

namespace mmengine {
namespace {

using cpu::kBlockRows;

template <class T>
void store_head(const KvView& kv, std::byte* head, std::int64_t slot, const float* k,
                const float* v, T (*convert)(float)) {
  T* keys = reinterpret_cast<T*>(head);
  T* values = keys + kv.head_dim * cpu::kBlockTokens + slot * cpu::padded_head(kv.head_dim);
  for (std::int64_t i = 0; i < kv.head_dim; ++i) {
    keys[i * cpu::kBlockTokens + slot] = convert(k[i]);
    values[i] = convert(v[i]);
  }
}

// k and v of one row. Rows are stored by several threads at once, so only what is found is added.
void count_saturated(const KvView& kv, const float* row) {
  const std::int64_t elements = 2 * std::int64_t{kv.num_kv_heads} * kv.head_dim;
  const auto found =
      std::count_if(row, row + elements, [](float x) { return std::fabs(x) > kMaxE4m3; });
  if (found > 0) std::atomic_ref(*kv.saturated).fetch_add(found, std::memory_order_relaxed);
}

void rope_store_row(const NormQkvRopeStoreParams& p, std::int64_t r, float* qkv) {
  const KvView& kv = p.kv;
  const std::int64_t head_dim = kv.head_dim, width = p.q.shape[1];
  const std::int64_t position = p.step.positions[r];
  const float* cos = p.rope.cos + position * (head_dim / 2);
  const float* sin = p.rope.sin + position * (head_dim / 2);
  const std::int64_t rotated = width + kv.num_kv_heads * head_dim;
  for (std::int64_t i = 0; i < rotated; i += head_dim) ref::rope(qkv + i, cos, sin, head_dim);
  const float scale = p.rope.query_scale != nullptr ? p.rope.query_scale[position] : 1.0f;
  std::transform(qkv, qkv + width, p.q.as<float>() + r * p.q.row_stride,
                 [scale](float q) { return q * scale; });

  const std::int64_t slot = p.step.slot[p.step.sequence[r]];
  const std::int64_t block =
      p.step.block_table[slot * p.step.max_blocks + position / cpu::kBlockTokens];
  const auto element = static_cast<std::int64_t>(dtype_bytes(kv.dtype));
  const std::int64_t in_block = position % cpu::kBlockTokens;
  for (std::int64_t h = 0; h < kv.num_kv_heads; ++h) {
    std::byte* head =
        kv.data + block * kv.block_bytes + h * cpu::kv_head_elements(head_dim) * element;
    const float* k = qkv + width + h * head_dim;
    const float* v = k + kv.num_kv_heads * head_dim;
    if (kv.dtype == DType::f32) {
      store_head<float>(kv, head, in_block, k, v, [](float x) { return x; });
    } else if (kv.dtype == DType::bf16) {
      store_head<std::uint16_t>(kv, head, in_block, k, v, f32_to_bf16);
    } else {
      store_head<std::uint8_t>(kv, head, in_block, k, v, f32_to_e4m3);
    }
  }
  if (kv.dtype == DType::e4m3) count_saturated(kv, qkv + width);
}

// out[k] = column `id % 32` of its packed block, with the row's scale.
void gather_row(const Weight& table, std::int64_t id, float* out) {
  const WeightSpec& spec = table.spec;
  const std::int64_t first =
      id / kBlockRows * kBlockRows * spec.k + cpu::weight_slot(spec.format, id % kBlockRows);
  const auto gather = [&](auto* data, auto&& widen) {
    for (std::int64_t k = 0; k < spec.k; ++k) out[k] = widen(data[first + k * kBlockRows]);
  };
  switch (spec.format) {
    case WeightFormat::f32:
      return gather(static_cast<const float*>(table.data), [](float x) { return x; });
    case WeightFormat::bf16:
      return gather(static_cast<const std::uint16_t*>(table.data), bf16_to_f32);
    case WeightFormat::fp8: {
      const float scale = table.scales[id];
      return gather(static_cast<const std::uint8_t*>(table.data), [scale](std::uint8_t code) {
        return e4m3_to_f32(code) / cpu::kScaleFactor * scale;
      });
    }
    case WeightFormat::int8:
    case WeightFormat::int4:
      return cpu_gather_groups(table, id, out);
  }
}

float* row_of(TensorView view, std::int64_t r) { return view.as<float>() + r * view.row_stride; }

}  // namespace

std::size_t CpuTraits::packed_bytes(const WeightSpec& spec) const {
  return cpu::packed_bytes(spec);
}

std::size_t CpuTraits::kv_block_bytes(const KvSpec& spec) const {
  return cpu::kv_block_bytes(spec.num_kv_heads, spec.head_dim, dtype_bytes(spec.dtype));
}

std::size_t CpuTraits::scratch_bytes(const ModelShape& shape, const StepLimits& limits,
                                     int threads) const {
  if (threads == 0) threads = available_processors();
  const std::int64_t rows = std::max(limits.rows, limits.logits_rows);
  Carver linear;  // the largest of the stages that multiply
  linear.matrix(rows, shape.hidden_size);
  linear.floats(rows);
  linear.matrix(rows, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim);
  const std::int64_t widest =
      std::max({shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim});
  Carver in_groups = linear;
  GemmScratch(linear, rows, widest, false, threads);
  GemmScratch(in_groups, rows, widest, true, threads);
  Carver attention;
  AttentionScratch(attention, shape.num_heads, shape.num_kv_heads, shape.head_dim, limits.rows,
                   limits.context_tokens, threads);
  return std::max({linear.bytes(), in_groups.bytes(), attention.bytes()});
}

CpuBackend::CpuBackend(const cpu::Kernels& kernels, int threads)
    : kernels_(kernels), pool_(threads), sampling_(static_cast<std::size_t>(pool_.threads())) {}

std::string CpuBackend::describe() const {
  return str("cpu, ", kernels_.name, ", ", threads(), threads() == 1 ? " thread" : " threads");
}

void CpuBackend::upload(void* device, const void* host, std::size_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
}

void CpuBackend::download(void* host, const void* device, std::size_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
}

double CpuBackend::measure_read_bandwidth() {
  constexpr std::int64_t kMost = std::int64_t{512} << 20, kLeast = std::int64_t{64} << 20;
  const std::int64_t quarter = available_memory_bytes() / 4;
  const auto bytes = static_cast<std::size_t>(std::clamp(quarter, kLeast, kMost));
  const Buffer buffer = allocate_host(bytes);
  auto* data = static_cast<std::byte*>(buffer.data());
  const std::size_t threads = static_cast<std::size_t>(pool_.threads());
  const std::size_t share = bytes / threads / 4096 * 4096;
  pool_.run([&](int t) {  // each page near the thread that reads it
    std::memset(data + static_cast<std::size_t>(t) * share, 1, share);
  });
  double best = 0;
  for (int pass = 0; pass < 10; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::uint64_t> seen(threads);
    pool_.run([&](int t) {
      const auto i = static_cast<std::size_t>(t);
      seen[i] = kernels_.read(data + i * share, share, pass % 2 == 1);
    });
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    for (std::uint64_t s : seen) {
      MM_CHECK(s == 1, "measure_read_bandwidth", "expected all bytes read, got ", s);
    }
    best = std::max(best, static_cast<double>(share * threads) / time.count());
  }
  return best;
}

double CpuBackend::measure_peak(float (*multiply)(std::int64_t loops), double ops) {
  const auto threads = static_cast<std::size_t>(pool_.threads());
  const double loops_per_s = best_rate([&](std::int64_t loops) {
    std::vector<float> results(threads);
    pool_.run([&](int t) { results[static_cast<std::size_t>(t)] = multiply(loops); });
    for (float result : results) {
      MM_CHECK(result > 0, "measure_peak", "expected a positive result, got ", result);
    }
  });
  return loops_per_s * ops * static_cast<double>(threads);
}

double CpuBackend::measure_multiply_peak() {
  return measure_peak(kernels_.multiply, kernels_.multiply_flops);
}

double CpuBackend::measure_int8_peak() {
  return measure_peak(kernels_.multiply_bytes, kernels_.multiply_bytes_ops);
}

Weight CpuBackend::do_pack(const HostWeight& host, const WeightSpec& spec, TensorView target) {
  return cpu_pack(host, spec, target, pool_);
}

void CpuBackend::do_copy_blocks(const CopyBlocksParams& p) { ref::copy_blocks(p); }

void CpuBackend::do_begin(const BeginParams& p) { ref::begin(p, cpu::kBlockTokens); }

void CpuBackend::do_embed(const EmbedParams& p) {
  const Weight& table = p.table;
  for (int r = 0; r < p.step.rows; ++r) {
    const std::int32_t id = p.step.ids[r];
    MM_CHECK(id >= 0 && id < table.spec.n, "embed", "ids[", r, "]: expected 0 to ",
             table.spec.n - 1, ", got ", id);
  }
  pool_.parallel_for(p.step.rows, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r) {
      gather_row(table, p.step.ids[r], row_of(p.out, r));
    }
  });
}

void CpuBackend::quantise_row(float* x, const Weight& consumer, float* scale) const {
  if (consumer.quant == InputQuant::fixed) {
    kernels_.quantise(x, consumer.spec.k, consumer.input_scale);
  } else if (consumer.quant == InputQuant::per_token) {
    *scale = kernels_.quantise_row(x, consumer.spec.k);
  }
}

void CpuBackend::quantise_rows(TensorView x, const Weight& consumer, float* scale) {
  if (consumer.quant == InputQuant::none) return;
  pool_.parallel_for(x.shape[0], [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r) quantise_row(row_of(x, r), consumer, scale + r);
  });
}

void CpuBackend::norm_rows(TensorView x, const std::int32_t* rows, const Norm& norm,
                           const Weight& consumer, TensorView out, float* scale) {
  constexpr std::int64_t kRows = 8;  // per task: a wake-up costs more than a few rows
  const std::int64_t count = out.shape[0];
  pool_.parallel_for((count + kRows - 1) / kRows, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin * kRows; r < std::min(end * kRows, count); ++r) {
      kernels_.rms_norm(row_of(x, rows != nullptr ? rows[r] : r), norm.gain.as<float>(), norm.eps,
                        out.shape[1], row_of(out, r));
      quantise_row(row_of(out, r), consumer, scale + r);
    }
  });
}

template <class Epilogue>
void CpuBackend::gemm(TensorView x, const Weight& weight, TensorView out, Carver& carver,
                      Epilogue&& epilogue) {
  const bool pairs = weight.spec.role == Role::gate_up_proj;
  cpu_gemm(x, weight, out, pairs ? kBlockRows / 2 : kBlockRows, kernels_, pool_, order_, carver,
           epilogue);
}

void CpuBackend::linear(TensorView x, const float* x_scale, const Weight& weight, TensorView out,
                        bool add, Carver& carver) {
  const bool own = weight.quant == InputQuant::per_token;
  gemm(x, weight, out, carver,
       [&](std::int64_t block, std::int64_t first, int rows, const float* tile) {
         const std::int64_t column = block * kBlockRows;
         kernels_.put_tile({tile, weight.scales != nullptr ? weight.scales + column : nullptr,
                            own ? x_scale + first : nullptr, rows,
                            std::min(kBlockRows, weight.spec.n - column),
                            row_of(out, first) + column, out.row_stride, add});
       });
}

void CpuBackend::do_norm_qkv_rope_store(const NormQkvRopeStoreParams& p) {
  Carver carver(scratch_);
  const TensorView normed = carver.matrix(p.step.rows, p.qkv_proj.spec.k);
  const TensorView qkv = carver.matrix(p.step.rows, p.qkv_proj.spec.n);
  float* scale = carver.floats(p.step.rows);
  norm_rows(p.residual, nullptr, p.norm, p.qkv_proj, normed, scale);
  linear(normed, scale, p.qkv_proj, qkv, false, carver);
  constexpr std::int64_t kRows = 4;
  const std::int64_t count = p.step.rows;
  pool_.parallel_for((count + kRows - 1) / kRows, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin * kRows; r < std::min(end * kRows, count); ++r) {
      rope_store_row(p, r, row_of(qkv, r));
    }
  });
}

void CpuBackend::do_attention(const AttentionParams& p) {
  Carver carver(scratch_);
  cpu_attention(p, kernels_, pool_, carver);
  quantise_rows(p.out.rows(p.step.rows), p.consumer, p.out_scale);
}

void CpuBackend::do_linear_residual(const LinearResidualParams& p) {
  Carver carver(scratch_);
  linear(p.x, p.x_scale, p.weight, p.residual, true, carver);
}

void CpuBackend::do_norm_gate_up_silu(const NormGateUpSiluParams& p) {
  Carver carver(scratch_);
  const Weight& weight = p.gate_up_proj;
  const TensorView normed = carver.matrix(p.step.rows, weight.spec.k);
  float* scale = carver.floats(p.step.rows);
  norm_rows(p.residual, nullptr, p.norm, weight, normed, scale);
  constexpr std::int64_t kHalf = kBlockRows / 2;
  gemm(normed, weight, p.out, carver,
       [&](std::int64_t block, std::int64_t first, int rows, const float* tile) {
         const std::int64_t column = block * kHalf;
         const std::int64_t columns = std::min(kHalf, weight.spec.n / 2 - column);
         const float* scales =
             weight.scales != nullptr ? weight.scales + block * kBlockRows : nullptr;
         std::array<float, kBlockRows> own;
         for (std::int64_t r = 0; r < rows; ++r) {
           const float* of_row = scales;
           if (weight.quant == InputQuant::per_token) {
             std::transform(scales, scales + kBlockRows, own.begin(),
                            [s = scale[first + r]](float w) { return s * w; });
             of_row = own.data();
           }
           kernels_.silu_mul(tile + r * kBlockRows, of_row, columns,
                             row_of(p.out, first + r) + column);
         }
       });
  quantise_rows(p.out.rows(p.step.rows), p.consumer, p.out_scale);
}

void CpuBackend::do_logits(const LogitsParams& p) {
  Carver carver(scratch_);
  const TensorView normed = carver.matrix(p.step.logits_rows, p.lm_head.spec.k);
  float* scale = carver.floats(p.step.logits_rows);
  norm_rows(p.residual, p.step.logits_row, p.norm, p.lm_head, normed, scale);
  linear(normed, scale, p.lm_head, p.out, false, carver);
}

void CpuBackend::do_sample(const SampleParams& p) {
  pool_.parallel_for(p.step.logits_rows, [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t e = begin; e < end; ++e) {
      ref::sample_row(p, e, sampling_[static_cast<std::size_t>(thread)]);
    }
  });
}

void CpuBackend::do_accept(const AcceptParams& p) { ref::accept(p); }

}  // namespace mmengine
