// What the kernels of this folder offer to the backend: one launcher per op, each on a stream, and
// the words they share. No type of the CUDA toolkit: a Stream is what cudaStream_t is, by the
// driver's own name of it. All pointers are device memory. A launcher checks nothing that Backend
// has checked; what only the device can see goes into a Fault.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/fault.h"
#include "kernels/params.h"

struct CUstream_st;

namespace mmengine::cuda {

using Stream = CUstream_st*;

struct Grid {
  int x = 1, y = 1, z = 1;  // blocks
  // All blocks run at once, so that one may wait for another (wait_until); no more of them than the
  // device holds.
  bool together = false;
};

struct Launch {
  const char* name = "";  // the op, for messages
  Grid grid;
  int threads = 0;  // of a block, whole warps
  std::size_t shared_bytes = 0;
  Stream stream = nullptr;
};

// ---- a step (step.cu) ----------------------------------------------------------------------

// Nothing is written where anything is wrong.
void begin(const BeginParams& p, Fault* fault, Stream stream);
void accept(const AcceptParams& p, Stream stream);
// Pairs in order; one that is wrong is left out.
void copy_blocks(const CopyBlocksParams& p, Fault* fault, Stream stream);

// ---- rows ----------------------------------------------------------------------------------

// Tables in tiles (weight_layout.h), bf16 or fp8. The row of an id outside the table becomes zeros.
void embed(const EmbedParams& p, Fault* fault, Stream stream);

// out[i] = RMSNorm of row rows[i] of x, or of row i where rows is null, as the consumer wants it;
// out_scale [out rows] of InputQuant::per_token, else unused.
struct NormRowsParams {
  TensorView x;  // [.., H] f32
  const std::int32_t* rows;
  const Norm& norm;
  const Weight& consumer;
  TensorView out;  // [n, H] f32
  float* out_scale;
};
void norm_rows(const NormRowsParams& p, Stream stream);

// In place: rows of x [R, n] f32 as the consumer wants them.
void quantise_rows(TensorView x, const Weight& consumer, float* out_scale, Stream stream);

// qkv [R, (num_heads + 2 num_kv_heads) head_dim] f32, heads in their own order, only read: q
// rotated into p.q, k rotated and v into the pages of their positions.
void rope_store(const NormQkvRopeStoreParams& p, TensorView qkv, Stream stream);

// The rows of p.q over the pages of their sequences; p.out as f32, not quantised. scratch:
// attention_scratch_bytes (attention_args.h).
void attention(const AttentionParams& p, std::byte* scratch, Stream stream);

// ---- sampling ------------------------------------------------------------------------------

// What logits were before bias, penalties and bans, while a row's choice is made: one place for
// each entry of the lists of SampleInput.
struct ChangedLogits {
  float *bias, *count, *ban;
};
// p.out.id. The input is as in params.h but for this: no two rows share entries of the lists, and a
// row's bias is in ascending order of ids, equal ones in the order in which they are added.
void sample(const SampleParams& p, const ChangedLogits& changed, Stream stream);
// After sample: the rest of p.out, of rows that ask for it.
void logprobs(const SampleParams& p, Stream stream);

// ---- probes of the device ------------------------------------------------------------------
// `out`: 4 bytes that are not written but might be.

void measure_read(const void* data, std::size_t bytes, void* out, int blocks, Stream stream);
// Of one loop of one block.
constexpr int kOpsOfMatrixLoop = 131072, kOpsOfInt8Loop = 4096;
void measure_multiply(std::int64_t loops, void* out, int blocks, Stream stream);
void measure_multiply_int8(std::int64_t loops, void* out, int blocks, Stream stream);

}  // namespace mmengine::cuda
