// How one product is shared out among blocks of threads, and in what order its sums are added.
// Pure arithmetic, the same on host and device.
//
// k is cut into segments, by its length alone. A segment's sum starts from zero and is one chain in
// ascending k; an output is its segments' sums, added in ascending order. Neither depends on the
// number of blocks, so an output has the same bits on every device and in any company. The units
// (output tile, segment) form one list, tile by tile, that is cut into equal spans; where there are
// tiles enough, blocks take whole ones in turn.
#pragma once

namespace mmengine::cuda {

// Part of the numbers: other values give other bits. A segment has at least 8 k tiles (1024 codes),
// and a row at most 12 segments. More and shorter ones would cut the list more evenly: as it is,
// 132 blocks have 1 to 8 % more than their even share of the large matrices of Mistral Medium 3.5
// (qkv: 11 of 10.2 units), though a block that lacks one leaves its bandwidth to the others. Fewer
// and longer ones leave less to write down where spans end inside an output tile: with 64 rows 28
// MB a product, which the L2 cache holds.
constexpr int kLeastSegmentTiles = 8;
constexpr int kMostSegments = 12;

// Products of its numbers fit an int: (units + 1) * blocks < 2^31, which gemm checks.
struct StreamK {
  int tiles = 0;             // output tiles
  int k_tiles = 0;           // of each
  int blocks = 1;            // 1 .. units(), or tiles where those stay whole
  bool whole_tiles = false;  // block b has tiles b, b + blocks, ..: blocks work side by side

  constexpr int segment_tiles() const {
    const int even = (k_tiles + kMostSegments - 1) / kMostSegments;
    return even > kLeastSegmentTiles ? even : kLeastSegmentTiles;
  }
  constexpr int segments() const { return (k_tiles + segment_tiles() - 1) / segment_tiles(); }
  constexpr int units() const { return tiles * segments(); }

  // A block does the units begin(block), next(begin(block)), .. below end(block).
  constexpr int begin(int block) const {
    return whole_tiles ? block * segments() : block * units() / blocks;
  }
  constexpr int end(int block) const { return whole_tiles ? units() : begin(block + 1); }
  constexpr int next(int unit) const {
    const bool leaves = whole_tiles && segment_of(unit) + 1 == segments();
    return unit + 1 + (leaves ? (blocks - 1) * segments() : 0);
  }
  constexpr int block_of(int unit) const {
    return whole_tiles ? tile_of(unit) % blocks : ((unit + 1) * blocks - 1) / units();
  }

  constexpr int tile_of(int unit) const { return unit / segments(); }
  constexpr int segment_of(int unit) const { return unit % segments(); }
  // k tiles of a segment: the last may have fewer.
  constexpr int first_k_tile(int segment) const { return segment * segment_tiles(); }
  constexpr int end_k_tile(int segment) const {
    const int end = (segment + 1) * segment_tiles();
    return end < k_tiles ? end : k_tiles;
  }

  // The blocks that contribute to a tile are first .. last. The first one has its leading segments
  // and writes their running sum down; every other one writes down each segment for itself, because
  // the sums must be added one by one.
  constexpr int first_block(int tile) const { return block_of(tile * segments()); }
  constexpr int last_block(int tile) const { return block_of((tile + 1) * segments() - 1); }

  // What a block may write down: one running sum of the tile that its span ends in, and single
  // segments of the tile that its span begins in, which another block began.
  constexpr int slots_per_block() const {
    if (whole_tiles) return 0;
    const int longest = (units() + blocks - 1) / blocks;
    const int others = segments() - 1;
    return 1 + (longest < others ? longest : others);
  }
  constexpr int slots() const { return blocks * slots_per_block(); }
  constexpr int running_slot(int block) const { return block * slots_per_block(); }
  constexpr int segment_slot(int block, int unit) const {
    return running_slot(block) + 1 + (unit - begin(block));
  }
};

}  // namespace mmengine::cuda
