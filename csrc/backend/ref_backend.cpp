#include "backend/ref_backend.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "backend/best_rate.h"
#include "backend/row_reader.h"
#include "backend/scratch.h"
#include "base/check.h"

namespace mmengine {
namespace {

std::size_t element_bytes(WeightFormat format) {
  return format == WeightFormat::f32 ? 4 : format == WeightFormat::bf16 ? 2 : 1;
}

std::size_t data_bytes(const WeightSpec& spec) {  // scales start on a cache line
  const auto count = static_cast<std::size_t>(spec.n * spec.k);
  return (count * element_bytes(spec.format) + 63) / 64 * 64;
}

void pack_groups(const RowReader& reader, const HostWeight& host, const Weight& weight) {
  std::vector<float> buffer;
  for (std::int64_t n = 0; n < weight.spec.n; ++n) {
    const ref::GroupRow row = ref::group_row(weight, n);
    const GroupCodes out{const_cast<std::uint8_t*>(row.codes),
                         const_cast<std::uint16_t*>(row.scales),
                         const_cast<std::uint16_t*>(row.minima)};
    reader.read_groups(n, out, buffer);
    if (host.on_read) host.on_read(reader.stored_row_bytes(n));
  }
}

TensorView row_of(TensorView view, std::int64_t r) { return view.rows(r, 1); }

void quantise_rows(TensorView x, const Weight& consumer, float* scale) {
  for (std::int64_t i = 0; i < x.shape[0]; ++i) {
    const float s = ref::quantise_input(row_of(x, i).as<float>(), x.shape[1], consumer);
    if (consumer.quant == InputQuant::per_token) scale[i] = s;
  }
}

const float* row_scales(const Weight& weight, const float* scale) {
  return weight.quant == InputQuant::per_token ? scale : nullptr;
}

// out[i] = norm of row rows[i] of x, or of row i where rows is null, as the consumer wants it
void norm_rows(TensorView x, const std::int32_t* rows, const Norm& norm, const Weight& consumer,
               TensorView out, float* scale) {
  for (std::int64_t i = 0; i < out.shape[0]; ++i) {
    ref::rms_norm(row_of(x, rows != nullptr ? rows[i] : i).as<float>(), norm.gain.as<float>(),
                  norm.eps, out.shape[1], row_of(out, i).as<float>());
  }
  quantise_rows(out, consumer, scale);
}

}  // namespace

std::size_t RefTraits::packed_bytes(const WeightSpec& spec) const {
  if (has_groups(spec.format)) return ref::group_bytes(spec);
  const auto rows = static_cast<std::size_t>(spec.n);
  return data_bytes(spec) + (spec.format == WeightFormat::fp8 ? rows * sizeof(float) : 0);
}

std::size_t RefTraits::kv_block_bytes(const KvSpec& spec) const {
  const std::int64_t elements = 2 * spec.num_kv_heads * spec.head_dim * spec.block_tokens;
  return static_cast<std::size_t>(elements) * dtype_bytes(spec.dtype);
}

std::size_t RefTraits::scratch_bytes(const ModelShape& shape, const StepLimits& limits,
                                     int /*threads*/) const {
  const std::int64_t rows = std::max(limits.rows, limits.logits_rows);
  Carver carver;
  carver.matrix(rows, shape.hidden_size);
  carver.floats(rows);
  carver.matrix(rows, std::max({(shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim,
                                2 * shape.intermediate_size, shape.hidden_size}));
  return std::max<std::size_t>(carver.bytes(),
                               static_cast<std::size_t>(limits.context_tokens) * sizeof(float));
}

void RefBackend::upload(void* device, const void* host, std::size_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
}

void RefBackend::download(void* host, const void* device, std::size_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
}

double RefBackend::measure_read_bandwidth() {
  constexpr std::size_t kWords = std::size_t{16} << 20;  // 128 MiB
  const Buffer buffer = allocate_host(kWords * sizeof(std::uint64_t));
  auto* words = static_cast<std::uint64_t*>(buffer.data());
  std::fill_n(words, kWords, std::uint64_t{1});
  double best = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < kWords; ++i) sum += words[i];
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    MM_CHECK(sum == kWords, "measure_read_bandwidth", "expected the sum ", kWords, ", got ", sum);
    best = std::max(best, static_cast<double>(buffer.bytes()) / time.count());
  }
  return best;
}

double RefBackend::measure_multiply_peak() {
  constexpr int kChains = 8;
  const double loops_per_s = best_rate([](std::int64_t loops) {
    float chains[kChains] = {};
    for (std::int64_t i = 0; i < loops; ++i) {
      for (float& chain : chains) chain = std::fma(chain, 0.5f, 1.0f);
    }
    for (float chain : chains) {
      MM_CHECK(chain > 0, "measure_multiply_peak", "expected a positive sum, got ", chain);
    }
  });
  return loops_per_s * 2 * kChains;
}

double RefBackend::measure_int8_peak() {
  constexpr int kChains = 8;
  std::uint32_t chains[kChains] = {};
  const double loops_per_s = best_rate([&chains](std::int64_t loops) {
    for (std::int64_t i = 0; i < loops; ++i) {
      for (std::uint32_t& chain : chains) {
        chain += static_cast<std::uint8_t>(i) * static_cast<std::uint8_t>(chain | 1u);
      }
    }
  });
  const auto seen =
      std::count_if(std::begin(chains), std::end(chains), [](auto c) { return c > 0; });
  MM_CHECK(seen > 0, "measure_int8_peak", "expected sums of products, got 0");
  return loops_per_s * 2 * kChains;
}

Weight RefBackend::do_pack(const HostWeight& host, const WeightSpec& spec, TensorView target) {
  const RowReader reader(host, spec);
  Weight weight = reader.weight();
  weight.data = target.data;
  if (has_groups(spec.format)) {
    pack_groups(reader, host, weight);
    return weight;
  }
  auto* scales = reinterpret_cast<float*>(target.as<std::byte>() + data_bytes(spec));
  if (spec.format == WeightFormat::fp8) weight.scales = scales;
  std::vector<float> buffer;
  for (std::int64_t n = 0; n < spec.n; ++n) {
    const auto row_bytes = static_cast<std::int64_t>(element_bytes(spec.format)) * spec.k;
    const float scale = reader.read(n, target.as<std::byte>() + n * row_bytes, buffer);
    if (weight.scales != nullptr) scales[n] = scale;
    if (host.on_read) host.on_read(reader.stored_row_bytes(n));
  }
  return weight;
}

void RefBackend::do_copy_blocks(const CopyBlocksParams& p) { ref::copy_blocks(p); }

void RefBackend::do_begin(const BeginParams& p) { ref::begin(p, traits().block_tokens()); }

void RefBackend::do_embed(const EmbedParams& p) { ref::embed(p); }

void RefBackend::do_norm_qkv_rope_store(const NormQkvRopeStoreParams& p) {
  Carver carver(scratch_);
  const TensorView normed = carver.matrix(p.step.rows, p.qkv_proj.spec.k);
  const TensorView qkv = carver.matrix(p.step.rows, p.qkv_proj.spec.n);
  float* scale = carver.floats(p.step.rows);
  norm_rows(p.residual, nullptr, p.norm, p.qkv_proj, normed, scale);
  ref::gemm(normed, row_scales(p.qkv_proj, scale), p.qkv_proj, qkv);
  ref::rope_store(p, qkv);
}

void RefBackend::do_attention(const AttentionParams& p) {
  std::int32_t last = 0;
  for (int r = 0; r < p.step.rows; ++r) last = std::max(last, p.step.positions[r]);
  Carver carver(scratch_);
  ref::attention(p, carver.floats(std::int64_t{last} + 1));
  quantise_rows(p.out.rows(p.step.rows), p.consumer, p.out_scale);
}

void RefBackend::do_linear_residual(const LinearResidualParams& p) {
  Carver carver(scratch_);
  const TensorView product = carver.matrix(p.step.rows, p.weight.spec.n);
  ref::gemm(p.x, row_scales(p.weight, p.x_scale), p.weight, product);
  for (std::int64_t r = 0; r < p.step.rows; ++r) {
    float* residual = row_of(p.residual, r).as<float>();
    const float* add = row_of(product, r).as<float>();
    for (std::int64_t n = 0; n < p.weight.spec.n; ++n) residual[n] += add[n];
  }
}

void RefBackend::do_norm_gate_up_silu(const NormGateUpSiluParams& p) {
  Carver carver(scratch_);
  const TensorView normed = carver.matrix(p.step.rows, p.gate_up_proj.spec.k);
  const TensorView product = carver.matrix(p.step.rows, p.gate_up_proj.spec.n);
  float* scale = carver.floats(p.step.rows);
  norm_rows(p.residual, nullptr, p.norm, p.gate_up_proj, normed, scale);
  ref::gemm(normed, row_scales(p.gate_up_proj, scale), p.gate_up_proj, product);
  const std::int64_t size = p.gate_up_proj.spec.n / 2;
  for (std::int64_t r = 0; r < p.step.rows; ++r) {
    const float* gate = row_of(product, r).as<float>();
    float* out = row_of(p.out, r).as<float>();
    for (std::int64_t i = 0; i < size; ++i) out[i] = ref::silu_mul(gate[i], gate[size + i]);
  }
  quantise_rows(p.out.rows(p.step.rows), p.consumer, p.out_scale);
}

void RefBackend::do_logits(const LogitsParams& p) {
  Carver carver(scratch_);
  const TensorView normed = carver.matrix(p.step.logits_rows, p.lm_head.spec.k);
  float* scale = carver.floats(p.step.logits_rows);
  norm_rows(p.residual, p.step.logits_row, p.norm, p.lm_head, normed, scale);
  ref::gemm(normed, row_scales(p.lm_head, scale), p.lm_head, p.out);
}

void RefBackend::do_sample(const SampleParams& p) {
  for (int e = 0; e < p.step.logits_rows; ++e) ref::sample_row(p, e, sampling_);
}

void RefBackend::do_accept(const AcceptParams& p) { ref::accept(p); }

}  // namespace mmengine
