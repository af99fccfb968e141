// KvCache: bookkeeping of the block pool. Block ids only; it never sees a pointer, because every
// device has a pool of its own under the same ids. free + used == total; a block belongs to one
// sequence; block 0 is scrap and never handed out. Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/sequence.h"

namespace mmengine {

class KvCache {
 public:
  KvCache(int num_blocks, int block_tokens);  // without the scrap block

  // Blocks for positions [0, tokens). False: not enough blocks, nothing changed.
  bool reserve(Sequence& sequence, int tokens);
  void release(Sequence& sequence);  // gives back all

  int free_blocks() const { return static_cast<int>(free_.size()); }
  int used_blocks() const { return total_ - free_blocks(); }
  int total_blocks() const { return total_; }
  int block_tokens() const { return block_tokens_; }

 private:
  std::vector<std::int32_t> free_;  // a stack: the last one given back is the first one taken
  int total_, block_tokens_;
};

}  // namespace mmengine
