#include "runtime/kv_cache.h"

#include "base/check.h"

namespace mmengine {

KvCache::KvCache(int num_blocks, int block_tokens)
    : total_(num_blocks), block_tokens_(block_tokens) {
  MM_CHECK(num_blocks > 0 && block_tokens > 0, "kv_cache", "expected blocks, got ", num_blocks,
           " of ", block_tokens, " tokens");
  free_.reserve(static_cast<std::size_t>(num_blocks));
  for (std::int32_t block = num_blocks; block >= 1; --block) free_.push_back(block);
}

bool KvCache::reserve(Sequence& sequence, int tokens) {
  const int wanted = (tokens + block_tokens_ - 1) / block_tokens_;
  const int missing = wanted - static_cast<int>(sequence.block_table.size());
  if (missing > free_blocks()) return false;
  for (int i = 0; i < missing; ++i) {
    sequence.block_table.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void KvCache::release(Sequence& sequence) {
  free_.insert(free_.end(), sequence.block_table.rbegin(), sequence.block_table.rend());
  sequence.block_table.clear();
  sequence.table_sent = 0;
}

}  // namespace mmengine
