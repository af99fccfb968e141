#include "runtime/constraint.h"

#include <cxxabi.h>

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <utility>

#include "base/check.h"

namespace mmengine {
namespace {

constexpr std::int64_t kBits = 32;
constexpr std::size_t kMaxForced = 256;

bool any(const std::vector<std::uint32_t>& mask) {
  return std::any_of(mask.begin(), mask.end(), [](std::uint32_t word) { return word != 0; });
}

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

// At most kMaxForced at once, so that no step takes long. A token that the rules force and then do
// not accept is not forced: their mask decides.
void Constraint::find_forced() {
  const std::vector<std::int32_t> tokens = rules_->forced();
  more_forced_ = tokens.size() >= kMaxForced;
  for (const std::int32_t token : tokens) {
    if (forced_.size() >= kMaxForced) return;
    if (token < 0 || token >= vocab_size_) {
      throw std::runtime_error(str("forced: expected tokens below ", vocab_size_, ", got ", token));
    }
    if (!rules_->accept(token)) {
      more_forced_ = false;
      return;
    }
    forced_.push_back(token);
  }
}

void Constraint::prepare(const std::vector<std::int32_t>& banned) {
  if (next_ == Next::failed) return;
  try {
    if (!forces() && more_forced_) find_forced();
    if (forces()) {
      next_ = Next::given;
      return;
    }
    rules_->mask(mask_.data(), mask_.size());
  } catch (abi::__forced_unwind&) {  // the thread is being cancelled
    throw;
  } catch (...) {
    return fail(current_message());
  }
  const std::int64_t past = vocab_size_ % kBits;
  if (past != 0) mask_.back() &= (std::uint32_t{1} << past) - 1;
  next_ = any(mask_) ? Next::masked : Next::ended;
  if (banned.empty()) return;
  const std::vector<std::uint32_t> allowed = mask_;
  for (const std::int32_t token : banned) {
    mask_[static_cast<std::size_t>(token / kBits)] &= ~(std::uint32_t{1} << token % kBits);
  }
  if (!any(mask_)) mask_ = allowed;  // rather too short an answer than one against the rules
}

bool Constraint::advance(std::int32_t token) {
  if (forces()) {  // the rules have it already
    MM_CHECK(forced_.front() == token, "constraint", "expected token ", forced_.front(), ", got ",
             token);
    forced_.pop_front();
    return true;
  }
  try {
    if (!rules_->accept(token)) {
      throw std::runtime_error(str("token ", token, " is refused, but was allowed"));
    }
    find_forced();
  } catch (abi::__forced_unwind&) {
    throw;
  } catch (...) {
    fail(current_message());
    return false;
  }
  return true;
}

}  // namespace mmengine
