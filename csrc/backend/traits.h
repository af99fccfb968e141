// What a backend is, before and without any device: sizes of its packed layouts and its limits.
// Pure host code, compiled into every build. The backend's own packing uses these very functions.
#pragma once

#include <cstddef>

#include "kernels/params.h"

namespace mmengine {

enum class BackendKind { ref, cpu, cuda };

struct KvSpec {
  std::int64_t num_layers = 0, num_kv_heads = 0, head_dim = 0;
  int block_tokens = 0;
  DType dtype = DType::bf16;
};

class BackendTraits {
 public:
  virtual ~BackendTraits() = default;
  virtual int block_tokens() const = 0;
  virtual std::size_t packed_bytes(const WeightSpec&) const = 0;  // data, then scales
  virtual std::size_t kv_block_bytes(const KvSpec&) const = 0;    // of one layer
  virtual std::size_t scratch_bytes(const ModelShape&, const StepLimits&, int threads) const = 0;
};

const BackendTraits& traits(BackendKind kind);

}  // namespace mmengine
