// Causal attention of a step's rows over their pages: with tensor cores, decode and prefill each
// for its own sequences, or plain. How many rows a sequence has is known to the device alone, so
// both are launched unless the host can tell that one has nothing to do. Never run on a device.
#include "kernels/cuda/attention_args.h"

namespace mmengine::cuda {

void attention(const AttentionParams& p, std::byte* scratch, Stream stream) {
  if (p.step.rows == 0) return;
  const KvView& kv = p.kv;
  if (!has_attention_tiles(kv.dtype, kv.head_dim)) return attention_plain(p, stream);
  constexpr float kLog2E = 1.44269504f;
  const Step& step = p.step;
  const auto num_heads = static_cast<int>(p.q.shape[1] / kv.head_dim);
  const int parts = attention_parts(step.rows, step.sequences, step.max_blocks);
  const AttentionArgs args{p.q.as<float>(),
                           p.q.row_stride,
                           p.out.as<float>(),
                           p.out.row_stride,
                           kv.num_kv_heads,
                           num_heads / kv.num_kv_heads,
                           kv.head_dim,
                           p.scale * kLog2E,
                           step.positions,
                           step.cu_rows,
                           step.slot,
                           step.block_table,
                           step.sequences,
                           step.max_blocks,
                           kv.data,
                           kv.block_bytes,
                           reinterpret_cast<float*>(scratch),
                           parts};
  attention_decode(args, kv.dtype, stream);
  // A row of each sequence, and room for the parts of them all: nothing is left.
  const std::int64_t most = splits_of(std::int64_t{step.max_blocks} * kBlockTokens) * step.rows;
  if (step.rows == step.sequences && most <= parts) return;
  attention_prefill(args, kv.dtype, step.rows, stream);
}

}  // namespace mmengine::cuda
