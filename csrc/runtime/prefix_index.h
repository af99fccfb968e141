// PrefixIndex: which blocks of the pool hold the KV of which tokens. Every full block has a key, a
// 128-bit hash over its tokens and the key of the block before it; a hit counts only when the
// tokens, the salt and the chain of blocks before it are the same, so that a collision costs a hit
// and never an answer. Engine thread only.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/sequence.h"

namespace mmengine {

class PrefixIndex {
 public:
  PrefixIndex(int num_blocks, int block_tokens);

  // The block that continues the chain with tokens[block_tokens], appended to it; 0: none.
  std::int32_t find(PrefixChain& chain, const std::int32_t* tokens);
  // Enters `block` as the next of the chain, or, where these tokens are there already, leaves it
  // out; the chain grows either way. Returns an idle block that was in its place and can no longer
  // be reached, because what leads to it was evicted; 0: none.
  std::int32_t insert(PrefixChain& chain, const std::int32_t* tokens, std::int32_t block);
  // Cuts the chain where another sequence's block was evicted: to be entered again from there.
  void trim(PrefixChain& chain) const;

  bool holds(std::int32_t block) const { return entry_of_[index(block)] != nullptr; }
  // A block that no sequence uses may be evicted, the one longest unused first.
  void set_idle(std::int32_t block);
  void set_busy(std::int32_t block);
  int num_idle() const { return static_cast<int>(idle_.size()); }
  std::int32_t evict();  // forgets the block; num_idle() > 0

 private:
  struct KeyHash {
    std::size_t operator()(const PrefixKey& key) const { return key.low; }
  };
  struct Entry {
    std::int32_t block = 0;
    std::uint64_t serial = 0, parent = 0;  // parent: serial of the block before; 0: the first
    std::string salt;                      // of a first block
    std::vector<std::int32_t> tokens;
    bool idle = false;
    std::list<std::int32_t>::iterator place;  // in idle_
  };
  using Entries = std::unordered_map<PrefixKey, Entry, KeyHash>;

  static std::size_t index(std::int32_t block) { return static_cast<std::size_t>(block); }
  static bool closed(const PrefixChain& chain) {
    return !chain.links.empty() && chain.links.back().serial == 0;
  }
  PrefixKey next_key(const PrefixChain& chain, const std::int32_t* tokens) const;
  std::int32_t remove(Entries::iterator place);
  bool same(const Entry& entry, const PrefixChain& chain, const std::int32_t* tokens) const;

  int block_tokens_;
  std::uint64_t next_serial_ = 1;
  Entries entries_;
  std::vector<Entries::value_type*> entry_of_;  // by block; null: none
  std::list<std::int32_t> idle_;                // longest unused first
};

}  // namespace mmengine
