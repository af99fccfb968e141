#include "runtime/kv_cache.h"

#include <algorithm>

#include "base/check.h"

namespace mmengine {

KvCache::KvCache(int num_blocks, int block_tokens, bool share)
    : users_(static_cast<std::size_t>(num_blocks) + 1),
      total_(num_blocks),
      block_tokens_(block_tokens),
      share_(share),
      index_(num_blocks, block_tokens) {
  MM_CHECK(num_blocks > 0 && block_tokens > 0, "kv_cache", "expected blocks, got ", num_blocks,
           " of ", block_tokens, " tokens");
  free_.reserve(static_cast<std::size_t>(num_blocks));
  for (std::int32_t block = num_blocks; block >= 1; --block) free_.push_back(block);
}

void KvCache::attach(Sequence& sequence) {
  MM_CHECK(sequence.block_table.empty() && sequence.computed == 0, "kv_cache",
           "expected a sequence without blocks");
  // Rows that are asked for must be computed.
  if (!share_ || sequence.wants_rows()) return;
  sequence.prefix.links.clear();
  const int most = (static_cast<int>(sequence.tokens.size()) - 1) / block_tokens_;
  while (static_cast<int>(sequence.block_table.size()) < most) {
    const std::int32_t block =
        index_.find(sequence.prefix, sequence.tokens.data() + sequence.computed);
    if (block == 0) break;
    index_.set_busy(block);
    ++users_[static_cast<std::size_t>(block)];
    sequence.block_table.push_back(block);
    sequence.computed += block_tokens_;
  }
}

std::int32_t KvCache::take() {
  std::int32_t block = 0;
  if (free_.empty()) {
    block = index_.evict();
  } else {
    block = free_.back();
    free_.pop_back();
  }
  users_[static_cast<std::size_t>(block)] = 1;
  return block;
}

std::int32_t KvCache::fork(const Sequence& from, Sequence& sequence) {
  MM_CHECK(sequence.block_table.empty() && sequence.computed == 0, "kv_cache",
           "expected a sequence without blocks");
  const auto known = static_cast<std::ptrdiff_t>(sequence.tokens.size()) - 1;
  if (sequence.wants_rows() || from.prefix.salt != sequence.prefix.salt || from.computed < known ||
      !std::equal(sequence.tokens.begin(), sequence.tokens.begin() + known, from.tokens.begin())) {
    return 0;
  }
  sequence.computed = static_cast<int>(known);
  const auto full = static_cast<std::size_t>(sequence.computed / block_tokens_);
  for (std::size_t i = 0; i < full; ++i) {
    sequence.block_table.push_back(from.block_table[i]);
    ++users_[static_cast<std::size_t>(from.block_table[i])];
  }
  const auto& links = from.prefix.links;
  sequence.prefix.links.assign(
      links.begin(), links.begin() + static_cast<std::ptrdiff_t>(std::min(full, links.size())));
  return sequence.computed % block_tokens_ == 0 ? 0 : from.block_table[full];
}

bool KvCache::reserve(Sequence& sequence, int tokens) {
  const int missing = blocks_for(tokens) - static_cast<int>(sequence.block_table.size());
  if (missing > available_blocks()) return false;
  for (int i = 0; i < missing; ++i) sequence.block_table.push_back(take());
  return true;
}

void KvCache::share(Sequence& sequence) {
  const std::size_t full = static_cast<std::size_t>(sequence.computed / block_tokens_);
  // Most steps fill no block, and going through the chain takes time that grows with it.
  if (!share_ || sequence.prefix.links.size() >= full) return;
  index_.trim(sequence.prefix);
  for (std::size_t i = sequence.prefix.links.size(); i < full; ++i) {
    const std::int32_t unreachable = index_.insert(
        sequence.prefix, sequence.tokens.data() + i * block_tokens_, sequence.block_table[i]);
    if (unreachable != 0) free_.push_back(unreachable);
  }
}

void KvCache::give_back(std::int32_t block) {
  if (--users_[static_cast<std::size_t>(block)] > 0) return;
  if (index_.holds(block)) {
    index_.set_idle(block);
  } else {
    free_.push_back(block);
  }
}

// The last block first: of a chain, the end is evicted before what leads to it.
void KvCache::truncate(Sequence& sequence, int tokens) {
  const auto kept = static_cast<std::size_t>(blocks_for(tokens));
  while (sequence.block_table.size() > kept) {
    give_back(sequence.block_table.back());
    sequence.block_table.pop_back();
  }
  const auto full = static_cast<std::size_t>(tokens / block_tokens_);
  MM_CHECK(kept == full || sequence.block_table.size() <= full ||
               (users_[static_cast<std::size_t>(sequence.block_table[full])] == 1 &&
                !index_.holds(sequence.block_table[full])),
           "kv_cache", "token ", tokens, " lies in a block that others may read");
  if (sequence.prefix.links.size() > full) sequence.prefix.links.resize(full);
  sequence.table_sent = std::min(sequence.table_sent, static_cast<int>(kept));
  sequence.computed = std::min(sequence.computed, tokens);
}

}  // namespace mmengine
