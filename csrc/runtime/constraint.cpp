#include "runtime/constraint.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "base/check.h"

namespace mmengine {
namespace {

constexpr std::int64_t kBits = 32;

// Of the exception that is being handled, whatever its type.
std::string current_message() {
  try {
    throw;
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an exception of another type than std::exception";
  }
}

}  // namespace

Constraint::Constraint(std::unique_ptr<TokenConstraint> rules, std::int64_t vocab_size)
    : rules_(std::move(rules)),
      vocab_size_(vocab_size),
      mask_(static_cast<std::size_t>((vocab_size + kBits - 1) / kBits)) {}

void Constraint::fail(const std::string& error) {
  next_ = Next::failed;
  error_ = error;
}

void Constraint::find_forced() {
  for (const std::int32_t token : rules_->forced()) {
    MM_CHECK(token >= 0 && token < vocab_size_, "constraint", "forced: expected tokens below ",
             vocab_size_, ", got ", token);
    MM_CHECK(rules_->accept(token), "constraint", "token ", token, " is forced, but not accepted");
    forced_.push_back(token);
  }
}

void Constraint::prepare(const std::vector<std::int32_t>& banned) {
  if (next_ == Next::failed) return;
  try {
    if (!begun_) find_forced();
    begun_ = true;
    if (forces()) {
      next_ = Next::given;
      return;
    }
    rules_->mask(mask_.data(), mask_.size());
  } catch (...) {
    return fail(current_message());
  }
  const std::int64_t past = vocab_size_ % kBits;
  if (past != 0) mask_.back() &= (std::uint32_t{1} << past) - 1;
  for (const std::int32_t token : banned) {
    mask_[static_cast<std::size_t>(token / kBits)] &= ~(std::uint32_t{1} << token % kBits);
  }
  const bool any = std::any_of(mask_.begin(), mask_.end(), [](auto word) { return word != 0; });
  next_ = any ? Next::masked : Next::ended;
}

bool Constraint::advance(std::int32_t token) {
  if (forces()) {  // the rules have it already
    MM_CHECK(forced_.front() == token, "constraint", "expected token ", forced_.front(), ", got ",
             token);
    forced_.pop_front();
    return true;
  }
  try {
    MM_CHECK(rules_->accept(token), "constraint", "token ", token, " is refused, but was allowed");
    find_forced();
  } catch (...) {
    fail(current_message());
    return false;
  }
  return true;
}

}  // namespace mmengine
