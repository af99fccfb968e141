// A model without numerics: what it keeps of a token is a hash of that token, its position and all
// that it reads before it, layer by layer as a transformer does, so that a wrong block, position,
// slot or order anywhere gives another text. Two layers: keys of the second depend on what was read
// in the first.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/sequence.h"

namespace mmengine::simulation {

using Hash = std::uint64_t;
constexpr int kVocab = 32;

Hash mix(Hash a, Hash b);

struct Cell {  // the KV of one position
  Hash first = 0, second = 0;
};

inline Hash embed(std::int32_t token, int position) {
  return mix(static_cast<Hash>(token) + 1, static_cast<Hash>(position) + 1);
}
inline Hash attend(Hash before, Hash cell) { return mix(before, cell); }

// What a row's logits are changed by: of a sequence's parameters and tokens, or of a SampleRow.
struct Adjustment {
  float temperature = 0;
  float repetition = 1, frequency = 0, presence = 0;
  std::uint64_t seed = 0;
  float bias[kVocab] = {};
  std::int32_t generated[kVocab] = {};
  bool listed[kVocab] = {};  // penalties apply
  bool banned[kVocab] = {};
  std::uint32_t allowed = ~0u;  // by a constraint, a bit a token
};

// The token that follows the row with this last hidden state.
std::int32_t pick(Hash hidden, int position, const Adjustment& adjustment);

// Rules of a host program. Tokens come in groups of four: those of some groups are fixed, between
// them most tokens may follow, sometimes none. Whether it tells the fixed ones ahead changes
// nothing.
class Grammar final : public TokenConstraint {
 public:
  Grammar(std::uint64_t seed, int fails_at) : seed_(seed), fails_at_(fails_at) {}

  std::uint32_t allowed() const;  // throws from fails_at tokens on, a multiple of four; -1: never
  void mask(std::uint32_t* bits, std::size_t num_words) override;
  bool accept(std::int32_t token) override;
  void rollback(int num_tokens) override;
  std::unique_ptr<TokenConstraint> clone() const override;
  std::vector<std::int32_t> forced() override;

 private:
  bool is_fixed(std::size_t n) const { return mix(seed_, n / 4) % 3 == 0; }
  std::int32_t fixed_token(std::size_t n) const;
  std::uint32_t bits() const;
  void check() const;

  std::uint64_t seed_;
  int fails_at_;
  std::vector<std::int32_t> history_;
};

constexpr int kFreeTokens = 24;  // those below may be fixed by a Grammar, those above end its text

struct Request {
  RequestId id = 0;
  std::vector<std::int32_t> prompt, stop_ids;
  SamplingParams sampling;
  std::uint64_t seed = 0;
  std::string salt;
  bool logits = false;
  RequestId same_prompt_as = 0;
  std::uint64_t grammar = 0;  // seed of its constraint; 0: none
  int fails_at = -1;
};

// By definition, from a request and all of its tokens so far. Throws what its rules throw.
Adjustment adjustment_of(const Request& request, const std::vector<std::int32_t>& tokens);

struct Text {
  std::vector<std::int32_t> tokens;  // prompt and answer
  FinishReason finish = FinishReason::running;
};

// The answer by definition: no batch, no blocks, no chunks.
Text solo(const Request& request, int max_context);

}  // namespace mmengine::simulation
