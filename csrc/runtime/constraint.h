// Constraint: a TokenConstraint at work in one sequence. It answers before each token what may be
// chosen, takes the token that was, and holds what the rules force to follow. Whatever the rules
// throw, or do against their contract, ends up as `failed`: that sequence ends, and nothing else.
// prepare: by one thread while the step's forward runs; all else: engine thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "mmengine/types.h"

namespace mmengine {

class Constraint {
 public:
  Constraint(std::unique_ptr<TokenConstraint> rules, std::int64_t vocab_size);

  enum class Next : std::uint8_t {
    masked,  // any token of mask()
    given,   // forced_token()
    ended,   // none: the answer is complete
    failed,  // see error()
  };
  // What may come next, without the tokens of `banned` if there are others. Before a token is
  // sampled.
  void prepare(const std::vector<std::int32_t>& banned);
  Next next() const { return next_; }
  const std::vector<std::uint32_t>& mask() const { return mask_; }
  std::int32_t forced_token() const { return forced_.front(); }
  const std::string& error() const { return error_; }

  // The answer goes on after `token`, chosen as prepare said. False: failed.
  bool advance(std::int32_t token);
  // Forced tokens that follow the ones taken; each is taken with `advance`.
  bool forces() const { return !forced_.empty(); }

 private:
  void find_forced();
  void fail(const std::string& error);

  std::unique_ptr<TokenConstraint> rules_;
  std::int64_t vocab_size_;
  std::vector<std::uint32_t> mask_;
  std::deque<std::int32_t> forced_;  // accepted by the rules, not yet of the answer
  bool more_forced_ = true;          // the rules may force tokens that were not asked for yet
  Next next_ = Next::masked;
  std::string error_;
};

}  // namespace mmengine
