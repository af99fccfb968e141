// The kernel of every product: a tile is 128 rows of the weight x 8 to 128 rows of x. Eight warps
// multiply (mma.sync m16n8k16, codes of e4m3 widened to f16 in registers); one thread keeps bulk
// copies of both operands under way through a ring of stages. A block does its span of stream_k.h.
// Where spans share a tile, each writes its part down and the last to arrive adds them in order:
// nobody waits. 256 threads; registers and shared memory: the budgets in gemm_fp8.cu and
// gemm_bf16.cu. Never run on a device.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_args.h"
#include "kernels/cuda/gemm_epilogue.cuh"

namespace mmengine::cuda {

// ---- shared memory ---------------------------------------------------------------------------

template <class Shape>
struct GemmRing {  // the stages, then their barriers, then one word of the block
  std::byte* stages;
  std::uint64_t* full;   // the copies of a stage have arrived
  std::uint64_t* empty;  // all warps are done with it
  std::uint32_t* is_last;

  MM_DEVICE explicit GemmRing(std::byte* memory)
      : stages(memory),
        full(reinterpret_cast<std::uint64_t*>(memory + Shape::kStages * Shape::kStageBytes)),
        empty(full + Shape::kStages),
        is_last(reinterpret_cast<std::uint32_t*>(empty + Shape::kStages)) {}
};

struct RingPlace {  // the stage in turn, and the parity of its phase
  int stage = 0;
  std::uint32_t parity = 0;

  template <int kStages>
  MM_DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1u;
  }
};

// ---- the thread that copies ------------------------------------------------------------------

// Brings the k tiles of the block's span one after another, each into the next stage of the ring.
template <class Shape>
struct Feeder {
  const GemmArgs& args;
  const GemmRing<Shape>& ring;
  int unit;  // the next one
  int k = 0, end_k = 0;
  RingPlace place{};
  bool used = false;                                // all stages have been filled once
  const std::byte *weight = nullptr, *x = nullptr;  // k tile 0 of both

  static constexpr std::uint32_t kWeightBytes = static_cast<std::uint32_t>(kTileBytes);
  static constexpr std::uint32_t kXBytes = Shape::kStageBytes - kWeightBytes;

  MM_DEVICE bool next_unit() {
    const StreamK& s = args.schedule;
    if (unit >= s.end(block_x())) return false;
    const int segment = s.segment_of(unit);
    const TilePlace at = tile_place(s.tile_of(unit), args.n_tiles, args.column_blocks);
    k = s.first_k_tile(segment);
    end_k = s.end_k_tile(segment);
    weight = args.weight + std::int64_t{at.n_tile} * s.k_tiles * kTileBytes;
    x = args.staged + std::int64_t{at.column_block} * s.k_tiles * kXBytes;
    unit = s.next(unit);
    return true;
  }

  MM_DEVICE void feed() {
    if (k == end_k && !next_unit()) return;
    if (used) mbarrier_wait(ring.empty + place.stage, place.parity ^ 1u);
    std::uint64_t* full = ring.full + place.stage;
    std::byte* stage = ring.stages + place.stage * Shape::kStageBytes;
    mbarrier_expect(full, Shape::kStageBytes);
    if (args.column_blocks == 1) {
      copy_bulk_once(stage, weight + k * kTileBytes, kWeightBytes, full);
    } else {
      copy_bulk(stage, weight + k * kTileBytes, kWeightBytes, full);
    }
    copy_bulk(stage + kWeightBytes, x + std::int64_t{k} * kXBytes, kXBytes, full);
    ++k;
    place.template advance<Shape::kStages>();
    used = used || place.stage == 0;
  }
};

// ---- multiplying -----------------------------------------------------------------------------

// 16 rows x 32 bytes of the weight, from row `row` on: of bf16 one operand (16 along k), of e4m3
// two.
template <class Shape>
MM_DEVICE void load_weight(std::uint32_t (&a)[Shape::kOperands][4], const std::byte* tile, int row,
                           int byte) {
  const int lane = lane_index();
  std::uint32_t raw[4];
  load_matrix_x4(raw, tile + swizzled(row + lane % 16, byte + lane / 16 * 16));
  if constexpr (Shape::kFormat == WeightFormat::fp8) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // codes 4t .. 4t + 3 of 16, rows g and g + 8 (x_place)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t codes = raw[2 * i + half];
        a[i][half] = widen_e4m3_x2(static_cast<std::uint16_t>(codes & 0xffff));
        a[i][half + 2] = widen_e4m3_x2(static_cast<std::uint16_t>(codes >> 16));
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[0][i] = raw[i];
  }
}

// 16 along k of one term of all columns of the warp, from place `place` on.
template <class Shape>
MM_DEVICE void load_x(std::uint32_t (&b)[Shape::kColumnSteps][2], const std::byte* term, int column,
                      int place) {
  const int lane = lane_index(), byte = 2 * place + lane / 8 % 2 * 16;
  if constexpr (Shape::kColumnSteps == 1) {
    load_matrix_x2(b[0], term + swizzled(column + lane % 8, byte, Shape::kXRowBytes));
  } else {
#pragma unroll
    for (int j = 0; j < Shape::kColumnSteps; j += 2) {
      const int row = column + (j + lane / 16) * 8 + lane % 8;
      std::uint32_t both[4];
      load_matrix_x4(both, term + swizzled(row, byte, Shape::kXRowBytes));
#pragma unroll
      for (int i = 0; i < 4; ++i) b[j + i / 2][i % 2] = both[i];
    }
  }
}

template <class Shape>
MM_DEVICE void multiply_stage(Sums<Shape>& sums, const std::byte* stage) {
  const std::byte* x = stage + kTileBytes;
  const int row = first_row<Shape>(), column = first_column<Shape>();
#pragma unroll(Shape::kUnroll)
  for (int byte = 0; byte < kTileRowBytes; byte += 32) {
    std::uint32_t a[Shape::kRowSteps][Shape::kOperands][4];
#pragma unroll
    for (int i = 0; i < Shape::kRowSteps; ++i) load_weight<Shape>(a[i], stage, row + 16 * i, byte);
#pragma unroll
    for (int operand = 0; operand < Shape::kOperands; ++operand) {
      const int place = byte / 32 * 16 * Shape::kOperands + 16 * operand;
#pragma unroll
      for (int term = 0; term < Shape::kTerms; ++term) {
        std::uint32_t b[Shape::kColumnSteps][2];
        load_x<Shape>(b, x + term * Shape::kColumns * Shape::kXRowBytes, column, place);
#pragma unroll
        for (int i = 0; i < Shape::kRowSteps; ++i) {
#pragma unroll
          for (int j = 0; j < Shape::kColumnSteps; ++j) {
            if constexpr (Shape::kFormat == WeightFormat::fp8) {
              mma_f16(sums.d[i][j], a[i][operand], b[j]);
            } else {
              mma_bf16(sums.d[i][j], a[i][operand], b[j]);
            }
          }
        }
      }
    }
  }
}

// This block's part of a tile has been written down. Of the block that comes last `total` becomes
// the sum of all parts, in the order of k; false for the others.
template <class Shape>
MM_DEVICE bool add_parts(const GemmArgs& args, const GemmRing<Shape>& ring, int tile,
                         Sums<Shape>& total) {
  const StreamK& s = args.schedule;
  const int first = s.first_block(tile), last = s.last_block(tile);
  block_barrier();
  if (thread_index() == 0) {
    const std::uint32_t before = atomic_add_release(args.arrived + tile, 1u);
    *ring.is_last = before == static_cast<std::uint32_t>(last - first) ? 1 : 0;
  }
  block_barrier();
  if (*ring.is_last == 0) return false;
  total.read(args.partials, s.running_slot(first));
  const int end = (tile + 1) * s.segments();
  int unit = s.begin(first + 1);
  for (int block = first + 1; block <= last; ++block) {
    for (; unit < s.begin(block + 1) && unit < end; ++unit) {
      total.add_slot(args.partials, s.segment_slot(block, unit));
    }
  }
  return true;
}

template <class Shape>
MM_DEVICE void multiply_tiles(const GemmArgs& args, const GemmRing<Shape>& ring) {
  const StreamK& s = args.schedule;
  const int begin = s.begin(block_x()), end = s.end(block_x());
  const bool feeds = thread_index() == 0;
  Feeder<Shape> feeder{args, ring, begin};
  for (int i = 0; feeds && i < Shape::kStages - 1; ++i) feeder.feed();
  RingPlace place;
  Sums<Shape> total;
  for (int unit = begin; unit < end; unit = s.next(unit)) {
    const int tile = s.tile_of(unit), segment = s.segment_of(unit);
    Sums<Shape> sums;
    sums.clear();
    for (int k = s.first_k_tile(segment); k < s.end_k_tile(segment); ++k) {
      if (feeds) feeder.feed();  // into the stage that was read in the round before
      mbarrier_wait(ring.full + place.stage, place.parity);
      multiply_stage<Shape>(sums, ring.stages + place.stage * Shape::kStageBytes);
      warp_barrier();  // all lanes have read
      if (lane_index() == 0) mbarrier_arrive(ring.empty + place.stage);
      place.template advance<Shape::kStages>();
    }
    const bool began = unit - segment >= begin;  // this block has the tile's first segment
    const bool ends = segment + 1 == s.segments();
    if (!began) {
      sums.write(args.partials, s.segment_slot(block_x(), unit));
    } else if (segment == 0) {
      total = sums;
    } else {
      total.add(sums);
    }
    if (!ends && unit + 1 < end) continue;
    bool finished = began && ends;
    if (!finished) {
      if (began) total.write(args.partials, s.running_slot(block_x()));
      finished = add_parts<Shape>(args, ring, tile, total);
    }
    if (finished) finish_tile<Shape>(args, total, tile);
  }
}

template <class Shape>
MM_DEVICE void run_gemm(const GemmArgs& args) {
  const GemmRing<Shape> ring(shared_memory<std::byte>());
  if (thread_index() == 0) {
    for (int i = 0; i < Shape::kStages; ++i) {
      mbarrier_init(ring.full + i, 1);
      mbarrier_init(ring.empty + i, kGemmThreads / 32);
    }
    mbarrier_init_fence();
  }
  block_barrier();
  multiply_tiles<Shape>(args, ring);
}

}  // namespace mmengine::cuda
