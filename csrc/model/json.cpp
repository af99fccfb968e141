// The limits around nlohmann-json, whose parser keeps its own stack and checks UTF-8, but takes a
// NUL byte for the end of the text and lets duplicate keys pass.
#include "model/json.h"

#include <utility>
#include <vector>

#include "base/check.h"

namespace mmengine {
namespace {

class TreeReader final : public JsonReader {
 public:
  explicit TreeReader(JsonSource source) : JsonReader(std::move(source)) {}
  Json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool v) override { return put(v); }
  bool number_integer(number_integer_t v) override { return put(v); }
  bool number_unsigned(number_unsigned_t v) override { return put(v); }
  bool number_float(number_float_t v, const string_t&) override { return put(v); }
  bool string(string_t& v) override { return put(std::move(v)); }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (stack_.back()->contains(name)) {
      fail_at("duplicate_key", str("key ", printable(name), " appears twice"));
    }
    keys_.back() = std::move(name);
    return true;
  }

 protected:
  std::string place() const override { return keys_.empty() ? "" : keys_.back(); }

 private:
  Json* add(Json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[keys_.back()] = std::move(value));
  }
  bool put(Json value) {
    add(std::move(value));
    return true;
  }
  bool open(Json value) {
    enter();
    stack_.push_back(add(std::move(value)));
    keys_.emplace_back();
    return true;
  }
  bool close() {
    leave();
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Json*> stack_;       // open containers; a parent grows only after its child is closed
  std::vector<std::string> keys_;  // the key being read in each
};

}  // namespace

void JsonReader::fail_at(const char* reason, const std::string& message) const {
  throw Error(ErrorCode::model_format, source_.file, message,
              {.reason = reason, .file = source_.file});
}

void JsonReader::enter() {
  if (++depth_ > kMaxJsonDepth) {
    fail_at("depth", str("JSON is nested deeper than ", kMaxJsonDepth, " levels"));
  }
}

bool JsonReader::parse_error(std::size_t position, const std::string& token,
                             const Json::exception& error) {
  if (dynamic_cast<const Json::out_of_range*>(&error) != nullptr) {
    const std::string key = place();
    fail_at("value", str(key.empty() ? "" : printable(key) + ": ", "number ", printable(token),
                         " is out of range, expected a finite number of 64 bits"));
  }
  const std::int64_t byte = position == 0 ? 0 : static_cast<std::int64_t>(position) - 1;
  throw Error(ErrorCode::model_format, source_.file,
              str("invalid JSON at byte ", source_.offset + byte, ", near ",
                  printable(token.size() > 32 ? token.substr(token.size() - 32) : token)),
              {.reason = source_.reason, .file = source_.file, .offset = source_.offset + byte});
}

void read_json(std::string_view text, const JsonSource& source, JsonReader& reader) {
  const std::size_t nul = text.find('\0');
  if (nul != std::string_view::npos) {
    const std::int64_t at = source.offset + static_cast<std::int64_t>(nul);
    throw Error(ErrorCode::model_format, source.file, str("invalid JSON at byte ", at, ": NUL"),
                {.reason = source.reason, .file = source.file, .offset = at});
  }
  Json::sax_parse(text.begin(), text.end(), &reader);
}

Json parse_json(std::string_view text, const JsonSource& source) {
  TreeReader reader(source);
  read_json(text, source, reader);
  Json value = reader.take();
  if (!value.is_object()) {
    throw Error(ErrorCode::model_format, source.file,
                str("expected a JSON object, got ", shown(value)),
                {.reason = source.reason, .file = source.file});
  }
  return value;
}

Json read_json_file(const Directory& directory, const std::string& name, std::uint64_t max_bytes) {
  const std::string text = directory.read(name, max_bytes);
  return parse_json(text, {.file = directory.display(name)});
}

std::string shown(const Json& value) {
  if (value.is_string()) return printable(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 16) return str("an array of ", value.size());
  constexpr std::size_t kMaxBytes = 80;
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > kMaxBytes) text = text.substr(0, kMaxBytes) + "...";
  return text;
}

}  // namespace mmengine
