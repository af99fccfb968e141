// Sizes of the cuda backend, without a device: they are the same in every build.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/traits.h"

namespace mmengine {

class CudaTraits final : public BackendTraits {
 public:
  int block_tokens() const override;
  // Error{unsupported_model} for a format that it does not multiply with: f32, int8, int4.
  std::size_t packed_bytes(const WeightSpec&) const override;
  std::size_t kv_block_bytes(const KvSpec&) const override;
  std::size_t scratch_bytes(const ModelShape&, const StepLimits&, int threads) const override;
  // All that is left but a GiB, for code, captured graphs and what others take meanwhile.
  KvShare kv_share(std::size_t workspace) const override {
    return {1, workspace + (std::size_t{1} << 30)};
  }
  int prefill_chunk() const override { return 2048; }
};

// What a stage needs of the scratch memory, in this order; null memory: only counted.
struct CudaScratch {
  std::byte* kernel = nullptr;  // of the product, or of attention, to itself
  TensorView rows;              // [rows, hidden] f32, what a product reads
  float* scale = nullptr;       // [rows] of the same
  TensorView product;           // [rows, columns] f32
  std::size_t bytes = 0;

  // kernel_bytes: of the largest product, or of attention.
  CudaScratch(TensorView memory, std::size_t kernel_bytes, std::int64_t rows, std::int64_t hidden,
              std::int64_t columns);
};

}  // namespace mmengine
