// Building error messages: streams instead of std::format, which gcc 12 lacks.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>

#include "mmengine/error.h"

namespace mmengine {

template <class... Args>
std::string str(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// Text from a file or a request, made fit for a message: at most 80 bytes, control bytes and
// non-ASCII escaped, quoted.
std::string printable(std::string_view text);

template <class... Args>
[[noreturn]] void fail(ErrorCode code, std::string where, const Args&... message) {
  throw Error(code, std::move(where), str(message...));
}

// Products and sums of sizes that come from files; Error{model_format, reason "overflow"}.
std::uint64_t checked_mul(std::uint64_t a, std::uint64_t b, const char* what);
std::uint64_t checked_add(std::uint64_t a, std::uint64_t b, const char* what);

}  // namespace mmengine

// Checks between layers: a failure is a bug of the caller inside the library, not of its user.
#define MM_CHECK(condition, where, ...)                                         \
  do {                                                                          \
    if (!(condition)) {                                                         \
      ::mmengine::fail(::mmengine::ErrorCode::engine_dead, where, __VA_ARGS__); \
    }                                                                           \
  } while (0)
