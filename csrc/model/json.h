// Strict JSON from files that nobody vouches for: depth at most kMaxJsonDepth, no duplicate keys,
// no NUL, valid UTF-8, numbers that fit, nothing after the value. Every violation is
// Error{model_format} with the file and, for syntax, the byte offset in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "base/file.h"

namespace mmengine {

using Json = nlohmann::json;

constexpr int kMaxJsonDepth = 64;

struct JsonSource {  // where a text comes from, for errors
  std::string file;
  std::int64_t offset = 0;      // of the text in the file
  std::string reason = "json";  // of a syntax error
};

// The part that all event readers share. A derived class calls enter() and leave() at the borders
// of objects and arrays and names the place that it is at.
class JsonReader : public nlohmann::json_sax<Json> {
 public:
  explicit JsonReader(JsonSource source) : source_(std::move(source)) {}
  bool binary(binary_t&) final { return false; }  // never in text
  bool parse_error(std::size_t position, const std::string& token,
                   const Json::exception& error) final;

 protected:
  virtual std::string place() const = 0;  // the key being read, or ""
  void enter();
  void leave() { --depth_; }
  int depth() const { return depth_; }  // 1 inside the outermost object
  [[noreturn]] void fail_at(const char* reason, const std::string& message) const;
  const JsonSource& source() const { return source_; }

 private:
  JsonSource source_;
  int depth_ = 0;
};

// Events of `text` to `reader`, in one pass and without recursion.
void read_json(std::string_view text, const JsonSource& source, JsonReader& reader);

// The value in memory: only for texts of a bounded size. An object at the top is required.
Json parse_json(std::string_view text, const JsonSource& source);
Json read_json_file(const Directory& directory, const std::string& name, std::uint64_t max_bytes);

// A value for a message: compact, shortened, ASCII.
std::string shown(const Json& value);

}  // namespace mmengine
