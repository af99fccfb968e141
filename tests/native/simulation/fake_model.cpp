#include "simulation/fake_model.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace mmengine::simulation {
namespace {

double unit(Hash hash) { return (static_cast<double>(hash >> 11) + 0.5) * 0x1p-53; }

bool contains(const std::vector<std::int32_t>& list, std::int32_t token) {
  return std::find(list.begin(), list.end(), token) != list.end();
}

}  // namespace

// The finaliser of splitmix64 (Steele, Lea, Flood 2014) over both.
Hash mix(Hash a, Hash b) {
  Hash x = a * 0x9e3779b97f4a7c15u + (b ^ 0xd1b54a32d192ed03u);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::int32_t pick(Hash hidden, int position, const Adjustment& a) {
  std::int32_t best = -1;
  double highest = 0;
  for (std::int32_t token = 0; token < kVocab; ++token) {
    if (a.banned[token] || (a.allowed >> token & 1) == 0) continue;
    const auto salt = static_cast<Hash>(token);
    double logit = 6 * unit(mix(hidden, salt)) - 3 + a.bias[token];
    if (a.listed[token]) {
      logit = logit > 0 ? logit / a.repetition : logit * a.repetition;
      if (a.generated[token] > 0) logit -= a.frequency * a.generated[token] + a.presence;
    }
    if (a.temperature > 0) {  // one draw of the Gumbel distribution a token
      const Hash draw = mix(mix(a.seed, static_cast<Hash>(position)), salt);
      logit = logit / a.temperature - std::log(-std::log(unit(draw)));
    }
    if (best < 0 || logit > highest) {
      best = token;
      highest = logit;
    }
  }
  return std::max(best, 0);  // none may follow: nobody looks at this one
}

std::int32_t Grammar::fixed_token(std::size_t n) const {
  return static_cast<std::int32_t>(mix(seed_, n + 1000) % kFreeTokens);
}

void Grammar::check() const {
  if (fails_at_ >= 0 && static_cast<int>(history_.size()) >= fails_at_) {
    throw std::runtime_error("the rules fail");
  }
}

std::uint32_t Grammar::bits() const {
  if (is_fixed(history_.size())) return std::uint32_t{1} << fixed_token(history_.size());
  Hash hash = seed_;
  for (const std::int32_t token : history_) hash = mix(hash, static_cast<Hash>(token));
  std::uint32_t bits = 0;
  for (int token = 0; token < kVocab && hash % 24 != 0; ++token) {
    if (mix(hash, static_cast<Hash>(token)) % 3 != 0) bits |= std::uint32_t{1} << token;
  }
  return bits;
}

std::uint32_t Grammar::allowed() const {
  check();
  return bits();
}

void Grammar::mask(std::uint32_t* bits, std::size_t num_words) {
  std::fill_n(bits, num_words, 0);
  bits[0] = allowed();
}

bool Grammar::accept(std::int32_t token) {
  if ((bits() >> token & 1) == 0) return false;
  history_.push_back(token);
  return true;
}

void Grammar::rollback(int num_tokens) {
  history_.resize(history_.size() - static_cast<std::size_t>(num_tokens));
}

std::unique_ptr<TokenConstraint> Grammar::clone() const { return std::make_unique<Grammar>(*this); }

std::vector<std::int32_t> Grammar::forced() {
  check();
  std::vector<std::int32_t> tokens;
  if (seed_ % 3 == 0) return tokens;  // these tell nothing ahead
  for (std::size_t n = history_.size(); is_fixed(n); ++n) {
    tokens.push_back(fixed_token(n));
    if (n % 4 == 3) break;
  }
  return tokens;
}

Adjustment adjustment_of(const Request& request, const std::vector<std::int32_t>& tokens) {
  const SamplingParams& params = request.sampling;
  Adjustment a;
  a.temperature = params.temperature;
  a.repetition = params.repetition_penalty;
  a.frequency = params.frequency_penalty;
  a.presence = params.presence_penalty;
  a.seed = request.seed;
  for (const auto& [token, bias] : params.logit_bias) a.bias[token] += bias;
  const bool of_prompt = a.repetition != 1;
  const bool any = of_prompt || a.frequency != 0 || a.presence != 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const bool answer = i >= request.prompt.size();
    if (answer && any) ++a.generated[tokens[i]];
    if (of_prompt || (answer && any)) a.listed[tokens[i]] = true;
  }
  const auto generated = static_cast<int>(tokens.size() - request.prompt.size());
  if (generated < params.min_tokens) {
    for (const std::int32_t token : request.stop_ids) a.banned[token] = true;
  }
  if (request.grammar != 0) {
    Grammar grammar(request.grammar, request.fails_at);
    for (std::size_t i = request.prompt.size(); i < tokens.size(); ++i) grammar.accept(tokens[i]);
    a.allowed = grammar.allowed();
    for (int token = 0; token < kVocab; ++token) {
      if (a.banned[token]) a.allowed &= ~(std::uint32_t{1} << token);
    }
  }
  return a;
}

Text solo(const Request& request, int max_context) {
  Text text{request.prompt, FinishReason::running};
  if (request.logits) {
    text.finish = FinishReason::length;
    return text;
  }
  Hash first = 0, second = 0;
  int position = 0;
  while (text.finish == FinishReason::running) {
    for (; position < static_cast<int>(text.tokens.size()); ++position) {
      first = attend(first, embed(text.tokens[static_cast<std::size_t>(position)], position));
      second = attend(second, first);
    }
    Adjustment adjustment;
    try {
      adjustment = adjustment_of(request, text.tokens);
    } catch (const std::runtime_error&) {
      text.finish = FinishReason::error;
      break;
    }
    if (adjustment.allowed == 0) {
      text.finish = FinishReason::stop;
      break;
    }
    const std::int32_t token = pick(second, position - 1, adjustment);
    text.tokens.push_back(token);
    const auto generated = static_cast<int>(text.tokens.size() - request.prompt.size());
    if (contains(request.stop_ids, token) && generated > request.sampling.min_tokens) {
      text.finish = FinishReason::stop;
    } else if (generated == request.sampling.max_tokens ||
               static_cast<int>(text.tokens.size()) == max_context) {
      text.finish = FinishReason::length;
    }
  }
  return text;
}

}  // namespace mmengine::simulation
