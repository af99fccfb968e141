// What the checks know of the pool from outside: who held which blocks, and which blocks are full.
// A block that was full at a commit never changes until it is handed out again.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "simulation/fake_model.h"

namespace mmengine::simulation {

class Shadow {
 public:
  Shadow(int num_blocks, int block_tokens)
      : block_tokens_(block_tokens), full_(static_cast<std::size_t>(num_blocks) + 1) {}

  // What a full block is known by: the hash of all tokens up to its end, with their salt.
  Hash key(const std::string& salt, const std::vector<std::int32_t>& tokens, int block) const {
    Hash hash = 0;
    for (const char c : salt) hash = mix(hash, static_cast<Hash>(c) + 1);
    for (int p = 0; p < (block + 1) * block_tokens_; ++p) {
      hash = mix(hash, static_cast<Hash>(tokens[static_cast<std::size_t>(p)]));
    }
    return hash;
  }
  bool is_full(std::int32_t block) const { return entry(block).full; }
  bool holds(std::int32_t block, Hash key) const {
    return entry(block).full && entry(block).key == key;
  }
  bool finds(Hash key) const { return known_.contains(key); }

  void fill(std::int32_t block, Hash key) {
    entry(block) = {key, true};
    known_.insert(key);
  }
  // The block is handed out; true: it was full, and others may no longer find what it held.
  bool take(std::int32_t block) { return std::exchange(entry(block), Entry{}).full; }

 private:
  struct Entry {
    Hash key = 0;
    bool full = false;
  };
  Entry& entry(std::int32_t block) { return full_[static_cast<std::size_t>(block)]; }
  const Entry& entry(std::int32_t block) const { return full_[static_cast<std::size_t>(block)]; }

  int block_tokens_;
  std::vector<Entry> full_;
  std::set<Hash> known_;  // ever filled
};

}  // namespace mmengine::simulation
