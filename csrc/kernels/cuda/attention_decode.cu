// Attention of sequences with at most 8 rows: a block of four warps for each split of 256 positions
// of a KV head, a warp for each of its pages, which comes by bulk copies. All rows and query heads
// that share the KV head are rows of its tiles, 16 at a time. Splits of a row are written down and
// merged in order by merge_parts_kernel; a row with one split is finished at once. 128 threads.
// Shared memory at head_dim 128: 173,088 bytes with KV in bf16, 107,552 in e4m3, of which two
// blocks share a multiprocessor. Never run on a device.
#include "kernels/cuda/attention_tile.cuh"

namespace mmengine::cuda {
namespace {

constexpr int kThreads = 32 * kSplitPages;

// Pages [kSplitPages][K | V], q, page sums [kSplitPages][16][head], Softmax [kSplitPages][16],
// barriers [kSplitPages].
template <class T, int kHead>
struct DecodeMemory {
  static constexpr int kTile = static_cast<int>(kv_tile_elements(kHead));
  static constexpr std::size_t kBytes = 2 * kSplitPages * kTile * sizeof(T) +
                                        kTerms * kRowStep * kQStride<kHead> * 2 +
                                        kSplitPages * (kRowStep * (kHead + 2) * 4 + 8);

  T* pages;
  std::uint16_t* q;
  float* values;
  Softmax* softmax;
  std::uint64_t* arrived;

  MM_DEVICE explicit DecodeMemory(std::byte* memory)
      : pages(reinterpret_cast<T*>(memory)),
        q(reinterpret_cast<std::uint16_t*>(pages + 2 * kSplitPages * kTile)),
        values(reinterpret_cast<float*>(q + kTerms * kRowStep * kQStride<kHead>)),
        softmax(reinterpret_cast<Softmax*>(values + kSplitPages * kRowStep * kHead)),
        arrived(reinterpret_cast<std::uint64_t*>(softmax + kSplitPages * kRowStep)) {}
};

struct PageOfSplit {
  int first;   // its position
  int tokens;  // that the sequence has there, at most 64
  int hidden;  // the first token that some row must not see
};

// This warp's page for 16 tile rows from `first` on, into its part of shared memory.
template <class T, int kHead>
MM_DEVICE void do_page(const AttentionArgs& args, const Sequence& s, int kv_head, int first,
                       const DecodeMemory<T, kHead>& memory, const PageOfSplit& page, bool met) {
  const int lane = lane_index();
  const Tile<T, kHead> keys{memory.pages + 2 * warp_index() * memory.kTile};
  const Tile<T, kHead> values{keys.data + memory.kTile};
  int seen[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int n = tile_row(args, s, kv_head, first + lane / 4 + 8 * r).count - page.first;
    seen[r] = n > kBlockTokens ? kBlockTokens : n;
  }
  Softmax own[2];
  Weights weights;
  {
    float scores[8][4];
    multiply_keys(scores, memory.q, kRowStep * kQStride<kHead>, keys);
    soften(scores, args.scale, seen, own, weights);
  }
  std::uint64_t found = 0;
  if (met) {
    const Tile<T, kHead> whole{keys_of<T>(args, s, page.first / kBlockTokens, kv_head) +
                               memory.kTile};
    found = find_nonfinite(whole, page.hidden, page.tokens, seen);
  }
  float* out = memory.values + warp_index() * kRowStep * kHead;
#pragma unroll 1
  for (int i = 0; i < kHead; i += 16) {
    float d[2][4];
    multiply_values(d, weights, values, i);
    add_nonfinite(d, found, i);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int row = lane / 4 + e % 4 / 2 * 8;
      out[row * kHead + i + value_place<T>(e / 4, e % 4)] = d[e / 4][e % 4];
    }
  }
  if (lane % 4 == 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      memory.softmax[warp_index() * kRowStep + lane / 4 + 8 * r] = own[r];
    }
  }
}

// The pages of a split, merged, to the parts or, of a row that has no other split, to the output.
template <class T, int kHead>
MM_DEVICE void merge_pages(const AttentionArgs& args, const Sequence& s, int kv_head, int first,
                           int split, const DecodeMemory<T, kHead>& memory) {
  const int heads = args.num_kv_heads * args.heads_per_kv;
  const int begin = split * kSplitPages * kBlockTokens;
  const std::int64_t splits = splits_of(s.start + s.rows);
  for (int e = thread_index(); e < kRowStep * kHead; e += kThreads) {
    const int r = e / kHead, i = e % kHead;
    const TileRow row = tile_row(args, s, kv_head, first + r);
    if (row.count <= begin || i >= args.head_dim) continue;
    Softmax total = memory.softmax[r];
    float value = memory.values[e];
    for (int k = 1; k < kSplitPages && row.count > begin + k * kBlockTokens; ++k) {
      const Factors f = merge(total, memory.softmax[k * kRowStep + r]);
      value = fmaf(memory.values[k * kRowStep * kHead + e], f.add, value * f.keep);
    }
    if (splits_of(row.count) == 1) {
      args.out[row.row * args.out_stride + std::int64_t{row.head} * args.head_dim + i] =
          finished(value, total.sum);
      continue;
    }
    const std::int64_t part =
        (s.first_part + (row.row - s.first_row) * splits + split) * heads + row.head;
    args.parts[part * args.head_dim + i] = value;
    if (i == 0) {
      float* sums = args.parts + std::int64_t{args.most_parts} * heads * args.head_dim + 2 * part;
      sums[0] = total.highest;
      sums[1] = total.sum;
    }
  }
}

// budget: attend_decode_kernel 128 registers 173088 shared; needs HMMA, LDSM, UBLKCP
template <class T, int kHead>
MM_KERNEL(kThreads, 2)
void attend_decode_kernel(AttentionArgs args) {
  const int kv_head = block_y(), sequence = block_z(), warp = warp_index();
  const Sequence s =
      find_sequence(args, [&](const Sequence& found) { return found.index >= sequence; });
  if (s.index != sequence || s.first_part < 0) return;
  const DecodeMemory<T, kHead> memory(shared_memory<std::byte>());
  if (thread_index() == 0) {
    for (int i = 0; i < kSplitPages; ++i) mbarrier_init(memory.arrived + i, 1);
    mbarrier_init_fence();
  }
  block_barrier();

  T* keys = memory.pages + 2 * warp * memory.kTile;
  const int count = s.start + s.rows;
  std::uint32_t parity = 0;
  for (int split = block_x(); split < splits_of(count); split += grid_x()) {
    PageOfSplit page{(split * kSplitPages + warp) * kBlockTokens, 0, kBlockTokens};
    bool met = false;
    if (page.first < count) {
      page.tokens = count - page.first < kBlockTokens ? count - page.first : kBlockTokens;
      const int hidden = s.start + 1 - page.first;  // the first row sees that many
      page.hidden = hidden < 0 ? 0 : hidden < kBlockTokens ? hidden : kBlockTokens;
      if (lane_index() == 0) {
        const T* from = keys_of<T>(args, s, page.first / kBlockTokens, kv_head);
        copy_page(keys, from, page.tokens, args.head_dim, memory.arrived + warp);
      }
    }
    for (int first = 0; first < s.rows * args.heads_per_kv; first += kRowStep) {
      load_q<T, kHead>(args, s, kv_head, first, kRowStep, memory.q);
      block_barrier();
      if (page.first < count) {
        if (first == 0) {
          mbarrier_wait(memory.arrived + warp, parity);
          met = any(
              hide_values<kHead>(keys + memory.kTile, page.hidden, page.tokens, lane_index(), 32));
          fence_async();
          warp_barrier();
        }
        do_page(args, s, kv_head, first, memory, page, met);
      }
      block_barrier();
      merge_pages(args, s, kv_head, first, split, memory);
    }
    if (page.first < count) parity ^= 1u;
    block_barrier();  // the sums are read until here
  }
}

// A block for each head of each row that has several splits: these, in order.
// budget: merge_parts_kernel 64 registers 0 shared; needs none
MM_KERNEL(kThreads)
void merge_parts_kernel(AttentionArgs args) {
  const int sequence = block_x() / kDecodeRows, r = block_x() % kDecodeRows, head = block_y();
  const Sequence s =
      find_sequence(args, [&](const Sequence& found) { return found.index >= sequence; });
  if (s.index != sequence || s.first_part < 0 || r >= s.rows) return;
  const std::int64_t splits = splits_of(s.start + r + 1);
  if (splits == 1) return;
  const int heads = args.num_kv_heads * args.heads_per_kv;
  const std::int64_t first = s.first_part + r * splits_of(s.start + s.rows);
  const float* sums = args.parts + std::int64_t{args.most_parts} * heads * args.head_dim;
  float* out = args.out + (std::int64_t{s.first_row} + r) * args.out_stride +
               std::int64_t{head} * args.head_dim;
  for (int i = thread_index(); i < args.head_dim; i += kThreads) {
    Softmax total;
    float value = 0;
    for (std::int64_t split = 0; split < splits; ++split) {
      const std::int64_t part = (first + split) * heads + head;
      const Softmax own{sums[2 * part], sums[2 * part + 1]};
      const float x = args.parts[part * args.head_dim + i];
      if (split == 0) {
        total = own;
        value = x;
      } else {
        const Factors f = merge(total, own);
        value = fmaf(x, f.add, value * f.keep);
      }
    }
    out[i] = finished(value, total.sum);
  }
}

template <class T, int kHead>
void decode(const AttentionArgs& args, Stream stream) {
  constexpr std::int64_t kMostBlocks = 576;  // of all sequences: four for each multiprocessor
  const std::int64_t shares = std::int64_t{args.num_kv_heads} * args.sequences;
  const std::int64_t splits = splits_of(std::int64_t{args.max_blocks} * kBlockTokens);
  const std::int64_t x =
      std::min(splits, std::max<std::int64_t>(1, (kMostBlocks + shares - 1) / shares));
  static_assert(DecodeMemory<T, kHead>::kBytes <= 173088);  // the budget
  const Launch how{"attend_decode",
                   {static_cast<int>(x), args.num_kv_heads, args.sequences},
                   kThreads,
                   DecodeMemory<T, kHead>::kBytes,
                   stream};
  launch(attend_decode_kernel<T, kHead>, how, args);
}

}  // namespace

void attention_decode(const AttentionArgs& args, DType kv, Stream stream) {
  with_tile(kv, args.head_dim,
            [&](auto element, auto head) { decode<decltype(element), head>(args, stream); });
  const int heads = args.num_kv_heads * args.heads_per_kv;
  launch(merge_parts_kernel,
         {"merge_parts", {kDecodeRows * args.sequences, heads}, kThreads, 0, stream}, args);
}

}  // namespace mmengine::cuda
