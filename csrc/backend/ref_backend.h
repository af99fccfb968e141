// RefBackend: every stage composed from the scalar functions of kernels/ref, on one thread. The
// oracle of all other backends.
#pragma once

#include "backend/backend.h"
#include "kernels/ref/launch.h"

namespace mmengine {

class RefTraits final : public BackendTraits {  // row-major weights, then their scales
 public:
  int block_tokens() const override { return 32; }
  std::size_t packed_bytes(const WeightSpec&) const override;
  std::size_t kv_block_bytes(const KvSpec&) const override;
  std::size_t scratch_bytes(const ModelShape&, const StepLimits&, int threads) const override;
};

class RefBackend final : public Backend {
 public:
  const BackendTraits& traits() const override { return mmengine::traits(BackendKind::ref); }
  int threads() const override { return 1; }
  std::string describe() const override { return "ref, 1 thread"; }
  Buffer allocate(std::size_t bytes) override { return allocate_host(bytes); }
  void set_scratch(TensorView scratch) override { scratch_ = scratch; }
  void upload(void* device, const void* host, std::size_t bytes) override;
  void download(void* host, const void* device, std::size_t bytes) override;
  double measure_read_bandwidth() override;
  double measure_multiply_peak() override;
  double measure_int8_peak() override;

 private:
  Weight do_pack(const HostWeight&, const WeightSpec&, TensorView) override;
  void do_copy_blocks(const CopyBlocksParams& p) override;
  void do_begin(const BeginParams&) override;
  void do_embed(const EmbedParams&) override;
  void do_norm_qkv_rope_store(const NormQkvRopeStoreParams&) override;
  void do_attention(const AttentionParams&) override;
  void do_linear_residual(const LinearResidualParams&) override;
  void do_norm_gate_up_silu(const NormGateUpSiluParams&) override;
  void do_logits(const LogitsParams&) override;
  void do_sample(const SampleParams&) override;
  void do_accept(const AcceptParams&) override;

  TensorView scratch_;
  ref::SampleScratch sampling_;
};

}  // namespace mmengine
