// The checks every backend shares: each op looks at its views and sizes once, then the backend does
// it. A failure is a bug of the caller inside the library.
#include "backend/backend.h"

#include <algorithm>
#include <cmath>

#include "backend/cpu_backend.h"
#include "backend/cuda_backend.h"
#include "backend/ref_backend.h"
#include "base/check.h"

namespace mmengine {
namespace {

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank; ++i) text += str(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

// A matrix of at least `rows` rows; rows may lie further apart than they are long.
void check_matrix(const char* op, const char* name, const TensorView& view, std::int64_t rows,
                  std::int64_t columns, DType dtype = DType::f32) {
  MM_CHECK(view.dtype == dtype, op, name, ": expected ", dtype_name(dtype), ", got ",
           dtype_name(view.dtype));
  MM_CHECK(view.shape.rank == 2 && view.shape[0] >= rows && view.shape[1] == columns, op, name,
           ": expected [", rows, ", ", columns, "], got ", shape_text(view.shape));
  MM_CHECK(view.shape[0] < 2 || view.row_stride >= columns, op, name,
           ": expected a row stride of at least ", columns, ", got ", view.row_stride);
  MM_CHECK(view.data != nullptr || rows == 0, op, name, ": expected memory, got null");
}

void check_norm(const char* op, const Norm& norm, std::int64_t size) {
  const TensorView& gain = norm.gain;
  MM_CHECK(gain.data != nullptr && gain.dtype == DType::f32 && gain.shape.rank == 1 &&
               gain.shape[0] == size,
           op, "norm gain: expected f32 [", size, "], got ", dtype_name(gain.dtype), " ",
           shape_text(gain.shape));
}

void check_weight(const char* op, const char* name, const Weight& weight, Role role) {
  MM_CHECK(weight.data != nullptr, op, name, ": expected packed data, got null");
  MM_CHECK(weight.spec.role == role, op, name, ": expected role ", static_cast<int>(role), ", got ",
           static_cast<int>(weight.spec.role));
  MM_CHECK((weight.spec.format == WeightFormat::fp8) == (weight.scales != nullptr), op, name,
           ": expected scales for fp8 and for nothing else");
}

// Room for the scales of rows that have their own.
void check_row_scale(const char* op, const Weight& weight, const float* scale) {
  MM_CHECK(weight.quant != InputQuant::per_token || scale != nullptr, op,
           "row scale: expected memory for an input quantised per token, got null");
}

void check_kv(const char* op, const KvView& kv, const BackendTraits& traits) {
  MM_CHECK(kv.dtype == DType::f32 || kv.dtype == DType::bf16 || kv.dtype == DType::e4m3, op,
           "kv: expected f32, bf16 or e4m3, got ", dtype_name(kv.dtype));
  MM_CHECK(kv.dtype != DType::e4m3 || kv.saturated != nullptr, op,
           "kv: saturated: expected a counter for e4m3, got null");
  MM_CHECK(kv.num_kv_heads > 0 && kv.head_dim > 0 && kv.head_dim % 2 == 0, op,
           "kv: expected heads of even width, got ", kv.num_kv_heads, " of ", kv.head_dim);
  MM_CHECK(kv.block_tokens == traits.block_tokens(), op, "kv: block_tokens: expected ",
           traits.block_tokens(), ", got ", kv.block_tokens);
  const auto bytes = static_cast<std::int64_t>(
      traits.kv_block_bytes({1, kv.num_kv_heads, kv.head_dim, kv.block_tokens, kv.dtype}));
  MM_CHECK(kv.data != nullptr && kv.block_bytes >= bytes, op, "kv: block_bytes: expected at least ",
           bytes, ", got ", kv.block_bytes);
}

// Heads of q; the width must be whole groups of heads.
void check_heads(const char* op, std::int64_t width, const KvView& kv) {
  MM_CHECK(width > 0 && width % (std::int64_t{kv.num_kv_heads} * kv.head_dim) == 0, op,
           "q: expected a multiple of ", kv.num_kv_heads, " x ", kv.head_dim, " columns, got ",
           width);
}

void check_sample_row(const SampleRow& row, std::int64_t vocab, int e) {
  MM_CHECK(row.temperature >= 0 && std::isfinite(row.temperature), "sample", "row ", e,
           ": temperature: expected 0 or more, got ", row.temperature);
  MM_CHECK(row.top_p > 0 && row.min_p >= 0 && row.min_p <= 1 && row.top_k >= 0, "sample", "row ", e,
           ": expected top_p > 0, 0 <= min_p <= 1, top_k >= 0, got ", row.top_p, ", ", row.min_p,
           ", ", row.top_k);
  MM_CHECK(row.logprobs <= kMaxLogprobs && row.given < vocab, "sample", "row ", e,
           ": expected logprobs <= ", kMaxLogprobs, " and given < ", vocab, ", got ", row.logprobs,
           " and ", row.given);
  MM_CHECK(row.repetition_penalty > 0 && std::isfinite(row.repetition_penalty) &&
               std::isfinite(row.frequency_penalty) && std::isfinite(row.presence_penalty),
           "sample", "row ", e, ": expected finite penalties, repetition_penalty > 0, got ",
           row.repetition_penalty, ", ", row.frequency_penalty, ", ", row.presence_penalty);
}

void check_sample_lists(const SampleInput& input, const SampleRow& row, std::int64_t vocab, int e) {
  const auto check_id = [&](const char* list, std::int32_t id) {
    MM_CHECK(id >= 0 && id < vocab, "sample", "row ", e, ": ", list, ": expected ids below ", vocab,
             ", got ", id);
  };
  for (std::int32_t i = row.ban_begin; i < row.ban_end; ++i) check_id("ban", input.ban[i]);
  for (std::int32_t i = row.bias_begin; i < row.bias_end; ++i) {
    check_id("bias", input.bias[i].id);
    MM_CHECK(std::isfinite(input.bias[i].bias), "sample", "row ", e,
             ": bias: expected finite numbers, got ", input.bias[i].bias);
  }
  for (std::int32_t i = row.count_begin; i < row.count_end; ++i) {
    check_id("count", input.count[i].id);
  }
}

void check_mask(const SampleInput& input, const SampleRow& row, std::int64_t vocab, int e) {
  if (row.mask_begin < 0) return;
  const std::uint32_t* mask = input.mask + row.mask_begin;
  const std::int64_t past = vocab % 32;
  bool any = past != 0 && (mask[vocab / 32] & ((std::uint32_t{1} << past) - 1)) != 0;
  for (std::int64_t i = 0; i < vocab / 32 && !any; ++i) any = mask[i] != 0;
  MM_CHECK(any, "sample", "row ", e, ": mask: expected a token that may be chosen, got none");
}

}  // namespace

Weight Backend::pack(const HostWeight& host, const WeightSpec& spec, TensorView target) {
  MM_CHECK(spec.n > 0 && spec.k > 0, "pack", "spec: expected n and k of 1 or more, got ", spec.n,
           " and ", spec.k);
  MM_CHECK(spec.role != Role::gate_up_proj || spec.n % 2 == 0, "pack",
           "spec: expected an even n of gate and up, got ", spec.n);
  const std::size_t bytes =
      static_cast<std::size_t>(target.shape.count()) * dtype_bytes(target.dtype);
  const std::size_t needed = traits().packed_bytes(spec);
  MM_CHECK(target.data != nullptr && bytes >= needed, "pack", "target: expected ", needed,
           " bytes, got ", bytes);
  return do_pack(host, spec, target);
}

void Backend::copy_blocks(const CopyBlocksParams& p) {
  check_kv("copy_blocks", p.kv, traits());
  MM_CHECK(p.count >= 0 && (p.pairs != nullptr || p.count == 0), "copy_blocks",
           "expected pairs of blocks, got ", p.count);
  do_copy_blocks(p);
}

void Backend::begin(const BeginParams& p) {
  const Step& step = p.step;
  MM_CHECK(step.rows >= 0 && step.sequences >= 0 && step.logits_rows >= 0, "begin",
           "expected sizes of 0 or more, got ", step.rows, ", ", step.sequences, ", ",
           step.logits_rows);
  MM_CHECK(step.block_table == p.slots.block_table && step.max_blocks == p.slots.max_blocks,
           "begin", "block_table: expected the table of the slots");
  do_begin(p);
}

void Backend::embed(const EmbedParams& p) {
  MM_CHECK(p.table.spec.role == Role::embed || p.table.spec.role == Role::lm_head, "embed",
           "table: expected role embed or lm_head, got ", static_cast<int>(p.table.spec.role));
  check_weight("embed", "table", p.table, p.table.spec.role);
  check_matrix("embed", "out", p.out, p.step.rows, p.table.spec.k);
  do_embed(p);
}

void Backend::norm_qkv_rope_store(const NormQkvRopeStoreParams& p) {
  constexpr const char* kOp = "norm_qkv_rope_store";
  const WeightSpec& spec = p.qkv_proj.spec;
  check_weight(kOp, "qkv_proj", p.qkv_proj, Role::qkv_proj);
  check_kv(kOp, p.kv, traits());
  check_matrix(kOp, "residual", p.residual, p.step.rows, spec.k);
  check_norm(kOp, p.norm, spec.k);
  const std::int64_t q = spec.n - std::int64_t{2} * p.kv.num_kv_heads * p.kv.head_dim;
  check_heads(kOp, q, p.kv);
  check_matrix(kOp, "q", p.q, p.step.rows, q);
  MM_CHECK(p.rope.cos != nullptr && p.rope.sin != nullptr, kOp, "rope: expected tables, got null");
  do_norm_qkv_rope_store(p);
}

void Backend::attention(const AttentionParams& p) {
  constexpr const char* kOp = "attention";
  check_kv(kOp, p.kv, traits());
  check_weight(kOp, "consumer", p.consumer, Role::o_proj);
  check_heads(kOp, p.consumer.spec.k, p.kv);
  check_matrix(kOp, "q", p.q, p.step.rows, p.consumer.spec.k);
  check_matrix(kOp, "out", p.out, p.step.rows, p.consumer.spec.k, p.consumer.input);
  check_row_scale(kOp, p.consumer, p.out_scale);
  do_attention(p);
}

void Backend::linear_residual(const LinearResidualParams& p) {
  constexpr const char* kOp = "linear_residual";
  const Role role = p.weight.spec.role;
  MM_CHECK(role == Role::o_proj || role == Role::down_proj, kOp,
           "weight: expected role o_proj or down_proj, got ", static_cast<int>(role));
  check_weight(kOp, "weight", p.weight, role);
  check_matrix(kOp, "x", p.x, p.step.rows, p.weight.spec.k, p.weight.input);
  check_matrix(kOp, "residual", p.residual, p.step.rows, p.weight.spec.n);
  check_row_scale(kOp, p.weight, p.x_scale);
  do_linear_residual(p);
}

void Backend::norm_gate_up_silu(const NormGateUpSiluParams& p) {
  constexpr const char* kOp = "norm_gate_up_silu";
  check_weight(kOp, "gate_up_proj", p.gate_up_proj, Role::gate_up_proj);
  check_weight(kOp, "consumer", p.consumer, Role::down_proj);
  check_matrix(kOp, "residual", p.residual, p.step.rows, p.gate_up_proj.spec.k);
  check_norm(kOp, p.norm, p.gate_up_proj.spec.k);
  MM_CHECK(p.gate_up_proj.spec.n == 2 * p.consumer.spec.k, kOp, "gate_up_proj: expected ",
           2 * p.consumer.spec.k, " rows, got ", p.gate_up_proj.spec.n);
  check_matrix(kOp, "out", p.out, p.step.rows, p.consumer.spec.k, p.consumer.input);
  check_row_scale(kOp, p.consumer, p.out_scale);
  do_norm_gate_up_silu(p);
}

void Backend::logits(const LogitsParams& p) {
  constexpr const char* kOp = "logits";
  check_weight(kOp, "lm_head", p.lm_head, Role::lm_head);
  check_matrix(kOp, "residual", p.residual, p.step.rows, p.lm_head.spec.k);
  check_norm(kOp, p.norm, p.lm_head.spec.k);
  check_matrix(kOp, "out", p.out, p.step.logits_rows, p.lm_head.spec.n);
  do_logits(p);
}

void Backend::sample(const SampleParams& p) {
  check_matrix("sample", "logits", p.logits, p.step.logits_rows, p.logits.shape[1]);
  MM_CHECK(p.logits.shape[1] > 0, "sample", "logits: expected a vocabulary, got none");
  for (int e = 0; e < p.step.logits_rows; ++e) {
    const SampleRow& row = p.input.row[e];
    check_sample_row(row, p.logits.shape[1], e);
    check_sample_lists(p.input, row, p.logits.shape[1], e);
    check_mask(p.input, row, p.logits.shape[1], e);
  }
  do_sample(p);
}

void Backend::accept(const AcceptParams& p) {
  MM_CHECK(p.sampled != nullptr || p.step.logits_rows == 0, "accept",
           "sampled: expected ids, got null");
  do_accept(p);
}

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  if (options.kind == BackendKind::ref) {
    if (!options.instruction_set.empty()) {
      fail(ErrorCode::usage, "instruction_set", "backend ref has none to choose, expected '', got ",
           printable(options.instruction_set));
    }
    return std::make_unique<RefBackend>();
  }
  if (options.kind == BackendKind::cuda) return make_cuda_backend(options);
  const std::vector<const cpu::Kernels*> levels = cpu::supported_kernels();
  if (options.instruction_set.empty()) {
    return std::make_unique<CpuBackend>(*levels.back(), options.threads);
  }
  std::string names;
  for (const cpu::Kernels* level : levels) {
    if (options.instruction_set == level->name) {
      return std::make_unique<CpuBackend>(*level, options.threads);
    }
    names += str(names.empty() ? "" : ", ", level->name);
  }
  fail(ErrorCode::usage, "instruction_set", "this machine runs ", names, ", got ",
       printable(options.instruction_set));
}

}  // namespace mmengine
