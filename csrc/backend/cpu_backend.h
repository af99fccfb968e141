// CpuBackend: packed weights, stages fused around a GEMM of independent tasks (row group, block of
// 32 outputs), attention over (row group, kv head) tasks. Bits do not depend on the number of
// threads or the instruction set: only tasks are shared out, never sums.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "backend/scratch.h"
#include "backend/weight_order.h"
#include "base/parallel.h"
#include "kernels/cpu/launch.h"
#include "kernels/ref/launch.h"

namespace mmengine {

class CpuTraits final : public BackendTraits {
 public:
  int block_tokens() const override { return cpu::kBlockTokens; }
  std::size_t packed_bytes(const WeightSpec&) const override;
  std::size_t kv_block_bytes(const KvSpec&) const override;
  std::size_t scratch_bytes(const ModelShape&, const StepLimits&, int threads) const override;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const cpu::Kernels& kernels, int threads);
  const BackendTraits& traits() const override { return mmengine::traits(BackendKind::cpu); }
  int threads() const override { return pool_.threads(); }
  std::string describe() const override;
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

  double measure_peak(float (*multiply)(std::int64_t loops), double ops);
  // In place: as the consumer wants its input; scale[row] is written where each row has its own.
  void quantise_row(float* x, const Weight& consumer, float* scale) const;
  void quantise_rows(TensorView x, const Weight& consumer, float* scale);
  // Row i of out = norm of row rows[i] of x, or of row i where rows is null, as the consumer wants
  // it.
  void norm_rows(TensorView x, const std::int32_t* rows, const Norm& norm, const Weight& consumer,
                 TensorView out, float* scale);
  // cpu_gemm.h; `out` is what the epilogue writes to.
  template <class Epilogue>
  void gemm(TensorView x, const Weight& weight, TensorView out, Carver& carver,
            Epilogue&& epilogue);

  // out (+)= x times the weight with all its scales; x_scale[row] where each row of x has its own.
  void linear(TensorView x, const float* x_scale, const Weight& weight, TensorView out, bool add,
              Carver& carver);

  const cpu::Kernels& kernels_;
  ThreadPool pool_;
  WeightOrder order_;
  TensorView scratch_;
  std::vector<ref::SampleScratch> sampling_;  // one per thread
};

}  // namespace mmengine
