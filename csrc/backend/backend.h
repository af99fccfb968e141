// Backend: one device. Its ops are the stages of a layer, each checked once here and then done by
// do_<op>, so that every backend refuses with the same words and fuses inside a stage as it likes.
// All ops run in call order. One thread at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/buffer.h"
#include "backend/traits.h"
#include "base/memory.h"
#include "kernels/params.h"

namespace mmengine {

// Of matrices that are random values of a standard deviation of 1 / sqrt(k), from no file
// (synthetic_rows.h): the seed of one under its name, and what its e4m3 codes are multiplied by.
// The largest code is 448, as where a row was quantised by its largest weight.
std::uint64_t synthetic_seed(std::string_view name);
float synthetic_fp8_scale(std::int64_t k);

struct HostTensor {  // borrowed from a Checkpoint
  const void* data = nullptr;
  DType dtype = DType::bf16;
  Shape shape;
  std::optional<std::uint64_t> seed = std::nullopt;  // instead of data (synthetic_rows.h)
  explicit operator bool() const { return data != nullptr; }
};

// Elements of a stored row of k weights: u8 holds two codes each, of whole groups.
constexpr std::int64_t stored_columns(DType dtype, std::int64_t k) {
  return dtype == DType::u8 ? num_groups(k) * kGroup / 2 : k;
}

// Element i as f32. A file may have its tensors at any byte, so data need not be aligned.
inline float read_element(const HostTensor& tensor, std::int64_t i) {
  const auto load = [&]<class T>(T value) {
    std::memcpy(
        &value,
        static_cast<const std::byte*>(tensor.data) + i * static_cast<std::int64_t>(sizeof(T)),
        sizeof(T));
    return value;
  };
  switch (tensor.dtype) {
    case DType::f32:
      return load(float{});
    case DType::bf16:
      return bf16_to_f32(load(std::uint16_t{}));
    case DType::f16:
      return f16_to_f32(load(std::uint16_t{}));
    default:
      return e4m3_to_f32(load(std::uint8_t{}));
  }
}

struct TensorSource {  // where a tensor was found, for messages
  std::string file, tensor;
  std::string text() const { return file + ": " + tensor; }
};

// Rotary pairs of a head: (j, j + head_dim / 2), or adjacent (2j, 2j + 1) as in Mistral's files.
// Inside the engine all is half-split: pack reorders the rows of q and k (model-spec 1.4).
enum class RowOrder : std::uint8_t { half_split, interleaved };

struct HostWeight {  // the parts of one packed weight: q, k, v or gate, up or a single matrix
  struct Part {
    // [rows, k] f32, bf16, f16, e4m3 or i8 (codes of int8), or u8 (int4) [rows, 16 groups]: byte j
    // of a group holds element j in its low half, element j + 16 in its high one.
    HostTensor weight;
    // Of e4m3: f32 or bf16, one or [rows], or none; of i8 and u8: f16 [rows, groups], but none
    // where the matrix has no data.
    HostTensor weight_scale;
    HostTensor weight_min;   // of u8: f16 [rows, groups]
    HostTensor input_scale;  // f32 or bf16, one: of InputQuant::fixed
    RowOrder rows = RowOrder::half_split;
    TensorSource source, weight_scale_source, weight_min_source, input_scale_source;
  };
  std::vector<Part> parts;
  InputQuant quant = InputQuant::none;  // other than none: all parts and the format are e4m3
  bool allow_nonfinite = false;
  // Counts the rows whose weights are all too small for an f16 scale of their groups and become
  // zeros; may be null.
  std::atomic<std::int64_t>* vanished_rows = nullptr;
  // Told about so many more bytes of the parts that were read, from any thread; may be empty. May
  // throw in the thread that packs, to stop it.
  std::function<void(std::size_t bytes)> on_read;
};

struct BackendOptions {
  BackendKind kind = BackendKind::cpu;
  int threads = 0;  // 0 = the processors this process may use
  int device = 0;   // cuda: which one
  // cpu: "" = the best that this machine has; "scalar", "avx2", "avx512" ask for
  // one (tests compare them).
  std::string instruction_set;
};

struct Captured {  // ops that were recorded
  virtual ~Captured() = default;
  virtual void replay() = 0;  // does them again, with the numbers and addresses of then
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const BackendTraits& traits() const = 0;
  virtual int threads() const = 0;
  virtual std::string describe() const = 0;  // "cpu, avx2, 2 threads"

  virtual Buffer allocate(std::size_t bytes) = 0;
  // Host memory of what is uploaded and downloaded in every step.
  virtual Buffer allocate_images(std::size_t bytes) { return allocate_host(bytes); }
  // That allocate may still give.
  virtual std::int64_t available_bytes() const { return available_memory_bytes(); }
  virtual void set_scratch(TensorView scratch) = 0;  // traits().scratch_bytes(...) bytes
  virtual void upload(void* device, const void* host, std::size_t bytes) = 0;
  // `host` may be read after wait.
  virtual void download(void* host, const void* device, std::size_t bytes) = 0;
  // Until all ops before it are done; throws what they found wrong where an op returns before it is
  // done.
  virtual void wait() {}
  // The ops that `ops` calls, recorded and not done; null, and nothing is called, where doing them
  // again would be no cheaper than calling them. Not sample, whose lists are the host's.
  virtual std::unique_ptr<Captured> capture(const std::function<void()>& /*ops*/) {
    return nullptr;
  }
  // Bytes per second at which all threads together read memory no cache holds, in the better of the
  // orders in which they can ask for it; about a second.
  virtual double measure_read_bandwidth() = 0;
  // Floating point operations per second of all threads together, multiply-adds in registers
  // counted twice: of f32, on cuda of f16 by the matrix instruction that products use; a fraction
  // of a second.
  virtual double measure_multiply_peak() = 0;
  // The same of products of 8-bit integers that are summed up.
  virtual double measure_int8_peak() = 0;

  // Converts to spec.format, reorders rotary rows and packs into target (packed_bytes). To fp8:
  // scale = max|row| / 448 (1 for a row of zeros), code = e4m3(w / scale). To int8 and
  // int4: group_codes.h. Parts that quantise their common input by different fixed scales get the
  // largest, which clips none (model-spec 2.4). Throws Error{model_format, "non_finite"} naming
  // source and element unless allow_nonfinite, in which case NaN and infinity reach the outputs
  // they belong to; Error{model_format, "scale"} for a scale that is not positive, or that f16
  // cannot hold.
  Weight pack(const HostWeight& host, const WeightSpec& spec, TensorView target);

  void copy_blocks(const CopyBlocksParams& p);
  void begin(const BeginParams& p);
  void embed(const EmbedParams& p);
  void norm_qkv_rope_store(const NormQkvRopeStoreParams& p);
  void attention(const AttentionParams& p);
  void linear_residual(const LinearResidualParams& p);
  void norm_gate_up_silu(const NormGateUpSiluParams& p);
  void logits(const LogitsParams& p);
  void sample(const SampleParams& p);
  void accept(const AcceptParams& p);

 private:
  virtual Weight do_pack(const HostWeight&, const WeightSpec&, TensorView) = 0;
  virtual void do_copy_blocks(const CopyBlocksParams&) = 0;
  virtual void do_begin(const BeginParams&) = 0;
  virtual void do_embed(const EmbedParams&) = 0;
  virtual void do_norm_qkv_rope_store(const NormQkvRopeStoreParams&) = 0;
  virtual void do_attention(const AttentionParams&) = 0;
  virtual void do_linear_residual(const LinearResidualParams&) = 0;
  virtual void do_norm_gate_up_silu(const NormGateUpSiluParams&) = 0;
  virtual void do_logits(const LogitsParams&) = 0;
  virtual void do_sample(const SampleParams&) = 0;
  virtual void do_accept(const AcceptParams&) = 0;
};

// Error{usage} when the machine lacks the instruction set that was asked for,
// Error{unsupported_model} when it lacks the device.
std::unique_ptr<Backend> make_backend(const BackendOptions& options);

}  // namespace mmengine
