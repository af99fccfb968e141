// Attention of sequences with more than 8 rows: a block of eight warps for 128 tile rows of a KV
// head, 16 for each warp. Pages come one after another by bulk copies, the next while one is
// multiplied; a warp leaves out the pages behind its rows, and only pages with positions that some
// row must not see are looked through for them. 256 threads. Shared memory at head_dim 128:
// 200,752 bytes with KV in bf16, 167,984 in e4m3. Never run on a device.
#include "kernels/cuda/attention_tile.cuh"

namespace mmengine::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStages = 2;

template <class T, int kHead>
constexpr std::size_t kPrefillBytes = 2 * kStages * kv_tile_elements(kHead) * sizeof(T) +
                                      kTerms * kPrefillRows * kQStride<kHead> * 2 +
                                      kPrefillRows * kHead * 4 + kStages * 8 + kThreads / 32 * 4;

// The sums of 16 rows over a split. Those over all splits before it lie in shared memory, in the
// order of the threads: 8 floats of each 16 elements.
template <int kHead>
struct Sums {
  float values[kHead / 16][2][4];
  Softmax softmax[2];  // of the rows g and g + 8
};

// total <- total and the split that begins at `begin`, for rows that see `count` positions.
template <int kHead>
MM_DEVICE void add_split(float* total, Softmax (&softmax)[2], const Sums<kHead>& split, int begin,
                         const int (&count)[2]) {
  Factors f[2] = {{0, 1}, {0, 1}};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (begin == 0) {
      softmax[r] = split.softmax[r];
    } else if (count[r] > begin) {
      f[r] = merge(softmax[r], split.softmax[r]);
    }
  }
#pragma unroll
  for (int c = 0; c < kHead / 16; ++c) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int r = e % 4 / 2;
      float& value = total[(8 * c + e) * 32];
      const float x = split.values[c][e / 4][e % 4];
      if (begin == 0) {
        value = x;
      } else if (count[r] > begin) {
        value = fmaf(x, f[r].add, value * f[r].keep);
      }
    }
  }
}

// One page into the sums of its split. `own`: the page's values where they lie, if `met`.
template <class T, int kHead>
MM_DEVICE void add_page(Sums<kHead>& split, const AttentionArgs& args, const std::uint16_t* q,
                        const Tile<T, kHead>& keys, int page, const int (&count)[2], bool met,
                        int hidden, int tokens, const Tile<T, kHead>& own) {
  int seen[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int n = count[r] - page * kBlockTokens;
    seen[r] = n > kBlockTokens ? kBlockTokens : n;
  }
  Softmax softmax[2];
  Weights weights;
  {
    float scores[8][4];
    multiply_keys(scores, q, kPrefillRows * kQStride<kHead>, keys);
    soften(scores, args.scale, seen, softmax, weights);
  }
  const Tile<T, kHead> values{keys.data + kv_tile_elements(kHead)};
  const bool begins = page % kSplitPages == 0;
  Factors f[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    f[r] = {1, 0};
    if (begins) {
      split.softmax[r] = softmax[r];
    } else if (seen[r] > 0) {
      f[r] = merge(split.softmax[r], softmax[r]);
    }
  }
#pragma unroll
  for (int c = 0; c < kHead / 16; ++c) {
    float d[2][4];
    multiply_values(d, weights, values, 16 * c);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int r = e % 4 / 2;
      float& value = split.values[c][e / 4][e % 4];
      if (begins) {
        value = d[e / 4][e % 4];
      } else if (seen[r] > 0) {
        value = fmaf(d[e / 4][e % 4], f[r].add, value * f[r].keep);
      }
    }
  }
  if (!met) return;
  const std::uint64_t found = find_nonfinite(own, hidden, tokens, seen);
#pragma unroll
  for (int c = 0; c < kHead / 16; ++c) add_nonfinite(split.values[c], found, 16 * c);
}

template <class T>
MM_DEVICE void write_rows(const AttentionArgs& args, const Sequence& s, int kv_head, int first,
                          const float* total, const Softmax (&softmax)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const TileRow row = tile_row(args, s, kv_head, first + lane_index() / 4 + 8 * r);
    if (row.count == 0) continue;
    float* out = args.out + row.row * args.out_stride + std::int64_t{row.head} * args.head_dim;
    for (int c = 0; 16 * c < args.head_dim; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = 16 * c + value_place<T>(e / 2, 2 * r + e % 2);
        const float value = total[(8 * c + e / 2 * 4 + 2 * r + e % 2) * 32];
        if (i < args.head_dim) out[i] = finished(value, softmax[r].sum);
      }
    }
  }
}

// The sequence and tile of this block.
MM_DEVICE Sequence find_tile(const AttentionArgs& args) {
  int left = block_x();
  Sequence s = find_sequence(args, [&](const Sequence& found) {
    if (found.first_part >= 0) return false;
    const int tiles = (found.rows * args.heads_per_kv + kPrefillRows - 1) / kPrefillRows;
    if (left < tiles) return true;
    left -= tiles;
    return false;
  });
  s.tile = left;
  return s;
}

// budget: attend_prefill_kernel 255 registers 200752 shared; needs HMMA, LDSM, UBLKCP
template <class T, int kHead>
MM_KERNEL(kThreads, 1)
void attend_prefill_kernel(AttentionArgs args) {
  const Sequence s = find_tile(args);
  if (s.index < 0) return;
  const int kv_head = block_y(), first = s.tile * kPrefillRows;
  constexpr auto kTile = static_cast<int>(kv_tile_elements(kHead));
  T* stages = shared_memory<T>();
  auto* q = reinterpret_cast<std::uint16_t*>(stages + 2 * kStages * kTile);
  auto* totals = reinterpret_cast<float*>(q + kTerms * kPrefillRows * kQStride<kHead>);
  auto* arrived = reinterpret_cast<std::uint64_t*>(totals + kPrefillRows * kHead);
  auto* warp_met = reinterpret_cast<std::uint32_t*>(arrived + kStages);

  const int fewest = s.start + first / args.heads_per_kv + 1;  // that a row sees
  const int last = (first + kPrefillRows - 1) / args.heads_per_kv;
  const int most = s.start + (last < s.rows ? last + 1 : s.rows);
  const auto pages = static_cast<int>(pages_of(most));
  const auto tokens_of = [&](int page) {
    const int n = most - page * kBlockTokens;
    return n < kBlockTokens ? n : kBlockTokens;
  };
  const auto feed = [&](int page) {
    copy_page(stages + page % kStages * 2 * kTile, keys_of<T>(args, s, page, kv_head),
              tokens_of(page), args.head_dim, arrived + page % kStages);
  };

  if (thread_index() == 0) {
    for (int i = 0; i < kStages; ++i) mbarrier_init(arrived + i, 1);
    mbarrier_init_fence();
    for (int page = 0; page < kStages && page < pages; ++page) feed(page);
  }
  load_q<T, kHead>(args, s, kv_head, first, kPrefillRows, q);
  block_barrier();

  const int own = first + warp_index() * kRowStep;  // the warp's first row
  int count[2], warp_pages = 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    count[r] = tile_row(args, s, kv_head, own + lane_index() / 4 + 8 * r).count;
  }
  for (int r = 0; r < kRowStep; ++r) {  // a row that there is not sees nothing
    const auto n = static_cast<int>(pages_of(tile_row(args, s, kv_head, own + r).count));
    warp_pages = n > warp_pages ? n : warp_pages;
  }

  float* total = totals + warp_index() * kRowStep * kHead + lane_index();
  Softmax softmax[2];
  Sums<kHead> split;
  for (int page = 0; page < pages; ++page) {
    T* keys = stages + page % kStages * 2 * kTile;
    mbarrier_wait(arrived + page % kStages, static_cast<std::uint32_t>(page / kStages % 2));
    bool met = false;
    const int tokens = tokens_of(page), by_all = fewest - page * kBlockTokens;
    const int hidden = by_all < 0 ? 0 : by_all < kBlockTokens ? by_all : kBlockTokens;
    if (hidden < kBlockTokens) {
      met = any(hide_values<kHead>(keys + kTile, hidden, tokens, thread_index(), kThreads));
      fence_async();
      if (lane_index() == 0) warp_met[warp_index()] = met ? 1 : 0;
      block_barrier();
      for (int w = 0; w < kThreads / 32; ++w) met = met || warp_met[w] != 0;
    }
    if (page < warp_pages) {
      if (page % kSplitPages == 0 && page > 0) {
        add_split(total, softmax, split, (page - kSplitPages) * kBlockTokens, count);
      }
      const Tile<T, kHead> values{met ? keys_of<T>(args, s, page, kv_head) + kTile : nullptr};
      add_page(split, args, q + warp_index() * kRowStep * kQStride<kHead>, Tile<T, kHead>{keys},
               page, count, met, hidden, tokens, values);
    }
    block_barrier();  // all warps have read the stage
    if (thread_index() == 0 && page + kStages < pages) feed(page + kStages);
  }
  if (warp_pages == 0) return;
  add_split(total, softmax, split, (warp_pages - 1) / kSplitPages * kSplitPages * kBlockTokens,
            count);
  write_rows<T>(args, s, kv_head, own, total, softmax);
}

template <class T, int kHead>
void prefill(const AttentionArgs& args, int rows, Stream stream) {
  const int tiles = rows * args.heads_per_kv / kPrefillRows + args.sequences;
  static_assert(kPrefillBytes<T, kHead> <= 200752);  // the budget
  launch(attend_prefill_kernel<T, kHead>,
         {"attend_prefill", {tiles, args.num_kv_heads}, kThreads, kPrefillBytes<T, kHead>, stream},
         args);
}

}  // namespace

void attention_prefill(const AttentionArgs& args, DType kv, int rows, Stream stream) {
  with_tile(kv, args.head_dim,
            [&](auto element, auto head) { prefill<decltype(element), head>(args, rows, stream); });
}

}  // namespace mmengine::cuda
