// The one exception type of mmengine. Every failure that leaves the library is an Error with a
// code; Python has one subclass per code, the command line one exit code (README, "Errors").
// Standard library only, C++17.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "mmengine/export.h"

namespace mmengine {

enum class ErrorCode {
  usage,              // bad option or combination of options
  model_format,       // malformed or corrupted file
  model_not_found,    // missing path, unknown model name
  unsupported_model,  // valid file, unknown architecture, dtype or version; missing backend
  engine_dead,        // the engine failed or was closed; no further work
  resource,           // not enough memory, found before it is taken where possible
  output,             // a file could not be written
  overloaded,         // queue full
  request,            // bad request field
  cancelled,
  fork  // used in a child process after fork()
};

// Machine-readable facts beside the sentence. Fields that do not apply keep their defaults.
struct ErrorDetails {
  std::string reason{};                      // short stable word, e.g. "header_too_small"
  std::string file{}, tensor{};              // model_format
  std::int64_t offset = -1;                  // model_format: byte offset in the file
  std::string param{};                       // request: name of the field
  std::int64_t needed = -1, available = -1;  // resource: bytes
  double retry_after = -1;                   // overloaded: seconds
};

class MM_EXPORT Error : public std::runtime_error {
 public:
  // `where` is a file, tensor, option or request field; what() reads "where: what is wrong,
  // expected X, got Y; remedy".
  Error(ErrorCode code, std::string where, const std::string& message, ErrorDetails details = {})
      : std::runtime_error(where + ": " + message),
        code_(code),
        where_(std::move(where)),
        details_(std::move(details)) {}
  ErrorCode code() const noexcept { return code_; }
  const std::string& where() const noexcept { return where_; }
  const ErrorDetails& details() const noexcept { return details_; }

 private:
  ErrorCode code_;
  std::string where_;
  ErrorDetails details_;
};

}  // namespace mmengine
