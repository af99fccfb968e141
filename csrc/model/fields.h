// Typed, bounded reading of the fields of one JSON object. Every failure names file, field, value
// and what is allowed. A field that is null counts as absent.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/json.h"

namespace mmengine {

class Fields {
 public:
  // `prefix` is put before the field names in messages, e.g. "rope_parameters.".
  Fields(const Json& object, std::string file, std::string prefix = "")
      : object_(object), file_(std::move(file)), prefix_(std::move(prefix)) {}

  const std::string& file() const { return file_; }
  std::string path(const char* key) const { return prefix_ + key; }  // as shown in messages
  bool has(const char* key) const;
  bool present(const char* key) const { return object_.contains(key); }  // null counts, too
  const Json& value(const char* key) const;                              // null when absent

  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high) const;
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high,
                       std::int64_t fallback) const;
  double number(const char* key, double low, double high, double fallback) const;
  bool flag(const char* key, bool fallback) const;
  std::string text(const char* key, const std::string& fallback) const;
  Fields object(const char* key) const;  // an absent one is empty
  // An integer or a list of them; empty when absent.
  std::vector<std::int64_t> integers(const char* key, std::int64_t low, std::int64_t high) const;

  [[noreturn]] void missing(const char* key, const std::string& expected) const;
  [[noreturn]] void bad(const char* key, const std::string& expected) const;
  [[noreturn]] void unsupported(const char* key, const std::string& supported) const;

 private:
  std::int64_t bounded(const char* key, const Json& value, std::int64_t low, std::int64_t high,
                       const char* kind) const;

  const Json& object_;
  std::string file_, prefix_;
};

}  // namespace mmengine
