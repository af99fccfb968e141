#include "backend/cuda_traits.h"

#include <algorithm>

#include "backend/buffer.h"
#include "backend/cuda_sample.h"
#include "backend/scratch.h"
#include "base/check.h"
#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/gemm_tiles.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/weight_layout.h"

namespace mmengine {
namespace {

// In either format: scratch is planned before formats are known.
std::size_t product_bytes(Role role, std::int64_t n, std::int64_t k, std::int64_t rows,
                          std::int64_t head_dim) {
  std::size_t most = 0;
  for (WeightFormat format : {WeightFormat::bf16, WeightFormat::fp8}) {
    most = std::max(most, cuda::gemm_scratch_bytes({role, n, k, format, head_dim}, rows));
  }
  return most;
}

}  // namespace

CudaScratch::CudaScratch(TensorView memory, std::size_t kernel_bytes, std::int64_t row_count,
                         std::int64_t hidden, std::int64_t columns) {
  const std::size_t first =
      (kernel_bytes + Layout::kAlignment - 1) / Layout::kAlignment * Layout::kAlignment;
  const auto whole = static_cast<std::size_t>(memory.shape.count()) * dtype_bytes(memory.dtype);
  Carver carver;
  if (memory) {
    MM_CHECK(first <= whole, "scratch", "expected at least ", first, " bytes, got ", whole);
    kernel = memory.as<std::byte>();
    carver = Carver({kernel + first, DType::u8, {static_cast<std::int64_t>(whole - first)}, 1});
  }
  rows = carver.matrix(row_count, hidden);
  scale = carver.floats(row_count);
  product = carver.matrix(row_count, columns);
  bytes = first + carver.bytes();
}

int CudaTraits::block_tokens() const { return cuda::kBlockTokens; }

std::size_t CudaTraits::packed_bytes(const WeightSpec& spec) const {
  if (!cuda::has_tiles(spec.format)) {
    constexpr const char* names[] = {"f32", "bf16", "fp8", "int8", "int4"};
    fail(ErrorCode::unsupported_model, "weight_dtype",
         "device cuda multiplies with weights of bf16 and fp8, got ",
         names[static_cast<int>(spec.format)], "; ask for one of them, or for device cpu");
  }
  return cuda::packed_bytes(spec);
}

std::size_t CudaTraits::kv_block_bytes(const KvSpec& spec) const {
  return cuda::kv_page_bytes(spec.num_kv_heads, spec.head_dim, dtype_bytes(spec.dtype));
}

std::size_t CudaTraits::scratch_bytes(const ModelShape& shape, const StepLimits& limits,
                                      int /*threads*/) const {
  const std::int64_t rows = limits.rows, hidden = shape.hidden_size, d = shape.head_dim;
  const std::int64_t heads = shape.num_heads * d;
  const std::int64_t qkv = heads + 2 * shape.num_kv_heads * d;
  const std::size_t kernel =
      std::max({cuda::attention_scratch_bytes(limits.rows, limits.sequences, limits.max_blocks,
                                              shape.num_heads, d),
                product_bytes(Role::qkv_proj, qkv, hidden, rows, d),
                product_bytes(Role::o_proj, hidden, heads, rows, 0),
                product_bytes(Role::gate_up_proj, 2 * shape.intermediate_size, hidden, rows, 0),
                product_bytes(Role::down_proj, hidden, shape.intermediate_size, rows, 0),
                product_bytes(Role::lm_head, shape.vocab_size, hidden, limits.logits_rows, 0)});
  const std::int64_t most_rows = std::max(rows, std::int64_t{limits.logits_rows});
  return std::max(CudaScratch({}, kernel, most_rows, hidden, qkv).bytes,
                  CudaSampleImage::most_device_bytes(limits, shape.vocab_size));
}

}  // namespace mmengine
