#include "runtime/prefix_index.h"

#include <algorithm>
#include <functional>

#include "base/check.h"

namespace mmengine {
namespace {

// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

PrefixIndex::PrefixIndex(int num_blocks, int block_tokens)
    : block_tokens_(block_tokens), entry_of_(static_cast<std::size_t>(num_blocks) + 1) {}

PrefixKey PrefixIndex::next_key(const PrefixChain& chain, const std::int32_t* tokens) const {
  PrefixKey key{0x9e3779b97f4a7c15u, 0xd1b54a32d192ed03u};
  if (chain.links.empty()) {
    key.low ^= std::hash<std::string>{}(chain.salt);
  } else {
    key = chain.links.back().key;
  }
  for (int i = 0; i < block_tokens_; ++i) {
    const auto token = static_cast<std::uint64_t>(static_cast<std::uint32_t>(tokens[i]));
    key.high = mix(key.high + token + 0x9e3779b97f4a7c15u);
    key.low = mix((key.low ^ token) * 0xff51afd7ed558ccdu + key.high);
  }
  return key;
}

bool PrefixIndex::same(const Entry& entry, const PrefixChain& chain,
                       const std::int32_t* tokens) const {
  const bool first = chain.links.empty();
  return entry.parent == (first ? 0 : chain.links.back().serial) &&
         (!first || entry.salt == chain.salt) &&
         std::equal(entry.tokens.begin(), entry.tokens.end(), tokens);
}

std::int32_t PrefixIndex::find(PrefixChain& chain, const std::int32_t* tokens) {
  const PrefixKey key = next_key(chain, tokens);
  const auto found = entries_.find(key);
  if (found == entries_.end() || !same(found->second, chain, tokens)) return 0;
  chain.links.push_back({key, found->second.serial});
  return found->second.block;
}

void PrefixIndex::insert(PrefixChain& chain, const std::int32_t* tokens, std::int32_t block) {
  if (find(chain, tokens) != 0) return;
  MM_CHECK(!holds(block), "prefix_index", "block ", block, " is entered twice");
  const PrefixKey key = next_key(chain, tokens);
  Entry entry;
  entry.block = block;
  entry.serial = next_serial_++;
  entry.parent = chain.links.empty() ? 0 : chain.links.back().serial;
  if (chain.links.empty()) entry.salt = chain.salt;
  entry.tokens.assign(tokens, tokens + block_tokens_);
  chain.links.push_back({key, entry.serial});
  // An entry under the same key is of other tokens, or of a chain whose front was evicted: the
  // block stays out of the index.
  const auto [place, added] = entries_.try_emplace(key, std::move(entry));
  if (added) entry_of_[index(block)] = &*place;
}

void PrefixIndex::set_idle(std::int32_t block) {
  Entry& entry = entry_of_[index(block)]->second;
  MM_CHECK(!entry.idle, "prefix_index", "block ", block, " is idle already");
  entry.idle = true;
  entry.place = idle_.insert(idle_.end(), block);
}

void PrefixIndex::set_busy(std::int32_t block) {
  Entry& entry = entry_of_[index(block)]->second;
  if (!entry.idle) return;
  entry.idle = false;
  idle_.erase(entry.place);
}

std::int32_t PrefixIndex::evict() {
  MM_CHECK(!idle_.empty(), "prefix_index", "no block is idle");
  const std::int32_t block = idle_.front();
  idle_.pop_front();
  const PrefixKey key = entry_of_[index(block)]->first;
  entry_of_[index(block)] = nullptr;
  entries_.erase(key);
  return block;
}

}  // namespace mmengine
