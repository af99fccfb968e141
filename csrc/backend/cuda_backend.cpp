// Stages composed of kernels on one stream. An op returns once it has been put there; wait is for
// all of them and throws what they found wrong.
#include "backend/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <type_traits>

#include "backend/best_rate.h"
#include "backend/cuda_device.h"
#include "backend/cuda_fault.h"
#include "backend/cuda_pack.h"
#include "backend/cuda_sample.h"
#include "backend/cuda_traits.h"
#include "base/check.h"
#include "base/parallel.h"
#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_tiles.h"
#include "kernels/cuda/launch.h"

namespace mmengine {
namespace {

struct DestroyStream {
  void operator()(cuda::Stream stream) const { cuda::destroy_stream(stream); }
};
using OwnStream = std::unique_ptr<std::remove_pointer_t<cuda::Stream>, DestroyStream>;

struct DestroyGraph {
  void operator()(cuda::Graph graph) const { cuda::destroy_graph(graph); }
};

struct CudaCaptured final : Captured {
  CudaCaptured(cuda::Stream on, const std::function<void()>& ops)
      : graph(cuda::capture(on, ops)), stream(on) {}
  void replay() override { cuda::replay(graph.get(), stream); }
  std::unique_ptr<std::remove_pointer_t<cuda::Graph>, DestroyGraph> graph;
  cuda::Stream stream;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(const cuda::DeviceFacts& facts, int threads);
  const BackendTraits& traits() const override { return mmengine::traits(BackendKind::cuda); }
  int threads() const override { return pool_.threads(); }
  std::string describe() const override;
  Buffer allocate(std::size_t bytes) override { return cuda::allocate_device(bytes); }
  Buffer allocate_images(std::size_t bytes) override { return cuda::allocate_pinned(bytes); }
  std::int64_t available_bytes() const override { return facts_.available_bytes; }
  void set_scratch(TensorView scratch) override { scratch_ = scratch; }
  void upload(void* device, const void* host, std::size_t bytes) override;
  void download(void* host, const void* device, std::size_t bytes) override;
  void wait() override;
  std::unique_ptr<Captured> capture(const std::function<void()>& ops) override {
    return std::make_unique<CudaCaptured>(stream_, ops);
  }
  double measure_read_bandwidth() override;
  double measure_multiply_peak() override {
    return measure_peak(cuda::measure_multiply, cuda::kOpsOfMatrixLoop);
  }
  double measure_int8_peak() override {
    return measure_peak(cuda::measure_multiply_int8, cuda::kOpsOfInt8Loop);
  }

 private:
  Weight do_pack(const HostWeight&, const WeightSpec&, TensorView) override;
  void do_copy_blocks(const CopyBlocksParams&) override;
  void do_begin(const BeginParams&) override;
  void do_embed(const EmbedParams&) override;
  void do_norm_qkv_rope_store(const NormQkvRopeStoreParams&) override;
  void do_attention(const AttentionParams&) override;
  void do_linear_residual(const LinearResidualParams&) override;
  void do_norm_gate_up_silu(const NormGateUpSiluParams&) override;
  void do_logits(const LogitsParams&) override;
  void do_sample(const SampleParams&) override;
  void do_accept(const AcceptParams&) override;

  using Probe = void(std::int64_t loops, void* out, int blocks, cuda::Stream stream);
  double measure_peak(Probe* probe, int ops_of_loop);
  int blocks_of_probes() const { return 8 * facts_.multiprocessors; }  // all that fit at once
  CudaScratch scratch(const WeightSpec& product, std::int64_t rows, std::int64_t columns) const;
  void multiply(TensorView x, const float* x_scale, const Weight& weight,
                cuda::GemmEpilogue epilogue, TensorView out, const CudaScratch& scratch);
  std::byte* next_image(std::size_t bytes);
  void drain();

  cuda::DeviceFacts facts_;
  ThreadPool pool_;
  OwnStream owned_;
  cuda::Stream stream_;
  Buffer fault_, fault_image_;  // a Fault each, on the device and pinned
  Buffer ring_;                 // of weights on their way, in two halves
  TensorView scratch_;
  static constexpr std::size_t kImages = 2;
  Buffer images_[kImages];  // of the lists of sampling, pinned, in turn
  std::size_t next_image_ = 0, unread_images_ = 0;
};

cuda::Fault* fault_of(const Buffer& buffer) { return static_cast<cuda::Fault*>(buffer.data()); }

CudaBackend::CudaBackend(const cuda::DeviceFacts& facts, int threads)
    : facts_(facts),
      pool_(threads),
      owned_((cuda::use_device(facts.index), cuda::make_stream())),
      stream_(owned_.get()),
      fault_(cuda::allocate_device(sizeof(cuda::Fault))),
      fault_image_(cuda::allocate_pinned(sizeof(cuda::Fault))) {}

std::string CudaBackend::describe() const {
  return str("cuda:", facts_.index, ", ", facts_.name, ", ", facts_.multiprocessors,
             " multiprocessors");
}

void CudaBackend::upload(void* device, const void* host, std::size_t bytes) {
  cuda::copy_to_device(device, host, bytes, stream_);
}

void CudaBackend::download(void* host, const void* device, std::size_t bytes) {
  cuda::copy_to_host(host, device, bytes, stream_);
}

void CudaBackend::wait() {
  cuda::copy_to_host(fault_image_.data(), fault_.data(), sizeof(cuda::Fault), stream_);
  drain();
  const cuda::Fault found = *fault_of(fault_image_);
  if (found.count == 0) return;
  cuda::clear_device(fault_.data(), sizeof(cuda::Fault), stream_);
  cuda::check_fault(found);
}

// ---- weights -------------------------------------------------------------------------------

// While the pieces of one half of the ring are packed, those of the other are on their way.
Weight CudaBackend::do_pack(const HostWeight& host, const WeightSpec& spec, TensorView target) {
  constexpr std::size_t kMostHalf = std::size_t{64} << 20;
  const CudaPacker packer(host, spec);
  const std::size_t piece = packer.piece_bytes(), scales = cuda::kTileRows * sizeof(float);
  const auto at_once = std::clamp<std::int64_t>(
      static_cast<std::int64_t>(kMostHalf / (piece + scales)), 1, std::int64_t{2} * threads());
  const std::size_t half = static_cast<std::size_t>(at_once) * (piece + scales);
  if (ring_.bytes() < 2 * half) {
    cuda::wait_for(stream_);
    ring_ = {};
    ring_ = cuda::allocate_pinned(2 * half);
  }
  auto* data = target.as<std::byte>();
  std::byte* device_scales = data + cuda::data_bytes(spec);
  for (std::int64_t first = 0; first < packer.pieces(); first += at_once) {
    const std::int64_t count = std::min(at_once, packer.pieces() - first);
    std::byte* pieces =
        static_cast<std::byte*>(ring_.data()) + (first / at_once % 2 == 0 ? 0 : half);
    auto* piece_scales =
        reinterpret_cast<float*>(pieces + static_cast<std::size_t>(at_once) * piece);
    pool_.parallel_for(count, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        packer.pack(first + i, pieces + static_cast<std::size_t>(i) * piece,
                    piece_scales + i * cuda::kTileRows);
      }
    });
    cuda::wait_for(stream_);  // the other half may be used again
    upload(data + static_cast<std::size_t>(first) * piece, pieces,
           static_cast<std::size_t>(count) * piece);
    upload(device_scales + static_cast<std::size_t>(first) * scales, piece_scales,
           static_cast<std::size_t>(count) * scales);
  }
  cuda::wait_for(stream_);
  Weight weight = packer.weight();
  weight.data = data;
  if (spec.format == WeightFormat::fp8) weight.scales = reinterpret_cast<float*>(device_scales);
  return weight;
}

// ---- stages --------------------------------------------------------------------------------

CudaScratch CudaBackend::scratch(const WeightSpec& product, std::int64_t rows,
                                 std::int64_t columns) const {
  return {scratch_, cuda::gemm_scratch_bytes(product, rows), rows, product.k, columns};
}

void CudaBackend::multiply(TensorView x, const float* x_scale, const Weight& weight,
                           cuda::GemmEpilogue epilogue, TensorView out,
                           const CudaScratch& scratch) {
  cuda::gemm({x, x_scale, weight, epilogue, out, scratch.kernel}, facts_.multiprocessors, stream_);
}

void CudaBackend::do_copy_blocks(const CopyBlocksParams& p) {
  cuda::copy_blocks(p, fault_of(fault_), stream_);
}

void CudaBackend::do_begin(const BeginParams& p) { cuda::begin(p, fault_of(fault_), stream_); }

void CudaBackend::do_embed(const EmbedParams& p) { cuda::embed(p, fault_of(fault_), stream_); }

void CudaBackend::do_norm_qkv_rope_store(const NormQkvRopeStoreParams& p) {
  if (p.step.rows == 0) return;
  const CudaScratch s = scratch(p.qkv_proj.spec, p.step.rows, p.qkv_proj.spec.n);
  cuda::norm_rows({p.residual, nullptr, p.norm, p.qkv_proj, s.rows, s.scale}, stream_);
  multiply(s.rows, s.scale, p.qkv_proj, cuda::GemmEpilogue::store, s.product, s);
  cuda::rope_store(p, s.product, stream_);
}

void CudaBackend::do_attention(const AttentionParams& p) {
  const auto num_heads = p.q.shape[1] / p.kv.head_dim;
  const std::size_t bytes = cuda::attention_scratch_bytes(
      p.step.rows, p.step.sequences, p.step.max_blocks, num_heads, p.kv.head_dim);
  const CudaScratch s(scratch_, bytes, 0, 0, 0);
  cuda::attention(p, s.kernel, stream_);
  cuda::quantise_rows(p.out.rows(p.step.rows), p.consumer, p.out_scale, stream_);
}

void CudaBackend::do_linear_residual(const LinearResidualParams& p) {
  if (p.step.rows == 0) return;
  const CudaScratch s(scratch_, cuda::gemm_scratch_bytes(p.weight.spec, p.step.rows), 0, 0, 0);
  multiply(p.x.rows(p.step.rows), p.x_scale, p.weight, cuda::GemmEpilogue::add,
           p.residual.rows(p.step.rows), s);
}

void CudaBackend::do_norm_gate_up_silu(const NormGateUpSiluParams& p) {
  if (p.step.rows == 0) return;
  const CudaScratch s = scratch(p.gate_up_proj.spec, p.step.rows, 0);
  const TensorView out = p.out.rows(p.step.rows);
  cuda::norm_rows({p.residual, nullptr, p.norm, p.gate_up_proj, s.rows, s.scale}, stream_);
  multiply(s.rows, s.scale, p.gate_up_proj, cuda::GemmEpilogue::silu_mul, out, s);
  cuda::quantise_rows(out, p.consumer, p.out_scale, stream_);
}

void CudaBackend::do_logits(const LogitsParams& p) {
  if (p.step.logits_rows == 0) return;
  const CudaScratch s = scratch(p.lm_head.spec, p.step.logits_rows, 0);
  cuda::norm_rows({p.residual, p.step.logits_row, p.norm, p.lm_head, s.rows, s.scale}, stream_);
  multiply(s.rows, s.scale, p.lm_head, cuda::GemmEpilogue::store, p.out.rows(p.step.logits_rows),
           s);
}

void CudaBackend::do_sample(const SampleParams& p) {
  const int rows = p.step.logits_rows;
  if (rows == 0) return;
  const CudaSampleImage lists(p.input, rows, p.logits.shape[1]);
  const auto room = static_cast<std::size_t>(scratch_.shape.count()) * dtype_bytes(scratch_.dtype);
  MM_CHECK(lists.device_bytes() <= room, "scratch", "expected at least ", lists.device_bytes(),
           " bytes, got ", room);
  std::byte* image = next_image(lists.bytes());
  lists.write(image);
  upload(scratch_.data, image, lists.bytes());
  auto* device = scratch_.as<std::byte>();
  const SampleParams params{p.step, p.logits, lists.input_on(device), p.out};
  cuda::sample(params, lists.changed_on(device), stream_);
  const bool scored = std::any_of(p.input.row, p.input.row + rows, [](const SampleRow& row) {
    return row.logprobs >= 0 || row.given >= 0;
  });
  if (scored) cuda::logprobs(params, stream_);
}

// Pinned memory that the stream does not read any more.
std::byte* CudaBackend::next_image(std::size_t bytes) {
  if (unread_images_ == kImages) drain();
  Buffer& image = images_[next_image_];
  next_image_ = (next_image_ + 1) % kImages;
  ++unread_images_;
  if (image.bytes() < bytes) {
    drain();
    image = {};
    image = cuda::allocate_pinned(std::bit_ceil(bytes));
    ++unread_images_;
  }
  return static_cast<std::byte*>(image.data());
}

void CudaBackend::drain() {
  cuda::wait_for(stream_);
  unread_images_ = 0;
}

void CudaBackend::do_accept(const AcceptParams& p) { cuda::accept(p, stream_); }

// ---- probes --------------------------------------------------------------------------------

double CudaBackend::measure_read_bandwidth() {
  const std::int64_t share = facts_.multiprocessors * (std::int64_t{4} << 20);  // past the L2 cache
  const std::int64_t quarter = facts_.available_bytes / 4 / 16 * 16;
  const auto bytes = static_cast<std::size_t>(std::min(share, quarter));
  const Buffer data = cuda::allocate_device(bytes), out = cuda::allocate_device(4);
  constexpr std::int64_t kShares = 64;  // best_rate begins with so many loops
  const double shares_per_s = best_rate([&](std::int64_t shares_read) {
    for (std::int64_t i = 0; i < shares_read; i += kShares) {
      cuda::measure_read(data.data(), bytes, out.data(), blocks_of_probes(), stream_);
    }
    cuda::wait_for(stream_);
  });
  return shares_per_s * static_cast<double>(bytes) / kShares;
}

double CudaBackend::measure_peak(Probe* probe, int ops_of_loop) {
  const Buffer out = cuda::allocate_device(4);
  const double loops_per_s = best_rate([&](std::int64_t loops) {
    probe(loops, out.data(), blocks_of_probes(), stream_);
    cuda::wait_for(stream_);
  });
  return loops_per_s * ops_of_loop * blocks_of_probes();
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  if (!options.instruction_set.empty()) {
    fail(ErrorCode::usage, "instruction_set", "backend cuda has none to choose, expected '', got ",
         printable(options.instruction_set));
  }
  const cuda::DeviceFacts facts = cuda::look_at_device(options.device);
  cuda::check_device(facts);
  return std::make_unique<CudaBackend>(facts, options.threads);
}

}  // namespace mmengine
