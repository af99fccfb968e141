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
  if (closed(chain)) return 0;
  const PrefixKey key = next_key(chain, tokens);
  const auto found = entries_.find(key);
  if (found == entries_.end() || !same(found->second, chain, tokens)) return 0;
  chain.links.push_back({key, found->second.serial, true});
  return found->second.block;
}

std::int32_t PrefixIndex::insert(PrefixChain& chain, const std::int32_t* tokens,
                                 std::int32_t block) {
  if (const std::int32_t known = find(chain, tokens)) {
    chain.links.back().own = known == block;
    return 0;
  }
  const PrefixKey key = next_key(chain, tokens);
  const auto found = entries_.find(key);
  const bool collides = found != entries_.end() && !std::equal(found->second.tokens.begin(),
                                                               found->second.tokens.end(), tokens);
  if (closed(chain) || collides) {
    chain.links.push_back({key, 0, true});
    return 0;
  }
  const std::int32_t unreachable = found != entries_.end() ? remove(found) : 0;
  MM_CHECK(!holds(block), "prefix_index", "block ", block, " is entered twice");
  Entry entry;
  entry.block = block;
  entry.serial = next_serial_++;
  entry.parent = chain.links.empty() ? 0 : chain.links.back().serial;
  if (chain.links.empty()) entry.salt = chain.salt;
  entry.tokens.assign(tokens, tokens + block_tokens_);
  chain.links.push_back({key, entry.serial, true});
  entry_of_[index(block)] = &*entries_.emplace(key, std::move(entry)).first;
  return unreachable;
}

void PrefixIndex::trim(PrefixChain& chain) const {
  const auto gone = [this](const PrefixChain::Link& link) {
    if (link.own) return false;
    const auto found = entries_.find(link.key);
    return found == entries_.end() || found->second.serial != link.serial;
  };
  chain.links.erase(std::find_if(chain.links.begin(), chain.links.end(), gone), chain.links.end());
}

// Returns its block if no sequence has it.
std::int32_t PrefixIndex::remove(Entries::iterator place) {
  const Entry& entry = place->second;
  const std::int32_t block = entry.block;
  const bool idle = entry.idle;
  if (idle) idle_.erase(entry.place);
  entry_of_[index(block)] = nullptr;
  entries_.erase(place);
  return idle ? block : 0;
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
  return remove(entries_.find(entry_of_[index(idle_.front())]->first));
}

}  // namespace mmengine
