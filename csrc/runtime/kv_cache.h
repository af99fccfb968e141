// KvCache: bookkeeping of the block pool. Block ids only; it never sees a pointer, because every
// device has a pool of its own under the same ids. free + used + cached == total; a full block may
// belong to several sequences with the same tokens, any other to one, which writes it; block 0 is
// scrap and never handed out. Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/prefix_index.h"
#include "runtime/sequence.h"

namespace mmengine {

class KvCache {
 public:
  // Without the scrap block. share: full blocks outlive their sequence until they are needed, and
  // serve sequences that begin with the same tokens.
  KvCache(int num_blocks, int block_tokens, bool share);

  // Gives a sequence that has no block those that hold its first tokens, never all of its tokens:
  // the last one must be computed to go on. Sets computed.
  void attach(Sequence& sequence);
  // The same from a running sequence that has computed all tokens of `sequence` but the last one,
  // whatever may be shared: its full blocks. Returns the next one, if it holds the rest of them: to
  // be copied into that which `sequence` reserves there, before rows are written; 0: none.
  std::int32_t fork(const Sequence& from, Sequence& sequence);
  // Blocks for positions [0, tokens), evicting cached ones. False: not enough, nothing changed.
  bool reserve(Sequence& sequence, int tokens);
  // Full blocks of tokens [0, computed) may serve others from now on.
  void share(Sequence& sequence);
  // Gives back the blocks that only hold positions from `tokens` on, the last one first: rows of
  // rejected drafts, or all. computed is at most `tokens` then.
  void truncate(Sequence& sequence, int tokens);
  void release(Sequence& sequence) { truncate(sequence, 0); }

  int free_blocks() const { return static_cast<int>(free_.size()); }  // hold nothing
  int cached_blocks() const { return index_.num_idle(); }             // hold a prefix of no one
  int available_blocks() const { return free_blocks() + cached_blocks(); }
  int used_blocks() const { return total_ - available_blocks(); }
  int total_blocks() const { return total_; }
  int block_tokens() const { return block_tokens_; }

 private:
  std::int32_t take();
  void give_back(std::int32_t block);
  int blocks_for(int tokens) const { return (tokens + block_tokens_ - 1) / block_tokens_; }

  std::vector<std::int32_t> free_;  // a stack: the last one given back is the first one taken
  std::vector<int> users_;          // sequences that hold each block
  int total_, block_tokens_;
  bool share_;
  PrefixIndex index_;
};

}  // namespace mmengine
