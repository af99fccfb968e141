// What a backend is, before and without any device: sizes of its packed layouts and its limits.
// Pure host code, compiled into every build. The backend's own packing uses these very functions.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/params.h"

namespace mmengine {

enum class BackendKind { ref, cpu, cuda };

struct KvSpec {
  std::int64_t num_layers = 0, num_kv_heads = 0, head_dim = 0;
  int block_tokens = 0;
  DType dtype = DType::bf16;
};

struct KvShare {  // one part of the memory that weights and `beside` leave
  std::size_t parts = 1, beside = 0;
  std::size_t of(std::size_t left) const { return (left - std::min(left, beside)) / parts; }
  std::size_t needed(std::size_t kv) const { return beside + parts * kv; }  // beside the weights
};

class BackendTraits {
 public:
  virtual ~BackendTraits() = default;
  virtual int block_tokens() const = 0;
  virtual std::size_t packed_bytes(const WeightSpec&) const = 0;  // data, then scales
  virtual std::size_t kv_block_bytes(const KvSpec&) const = 0;    // of one layer
  virtual std::size_t scratch_bytes(const ModelShape&, const StepLimits&, int threads) const = 0;
  // Of a KV cache that nobody gave a size; workspace: bytes of all else beside the weights. The
  // system's memory is others', too.
  virtual KvShare kv_share(std::size_t /*workspace*/) const { return {4, 0}; }
  virtual int prefill_chunk() const { return 256; }  // rows, unless told
};

const BackendTraits& traits(BackendKind kind);

}  // namespace mmengine
