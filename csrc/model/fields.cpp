// Field readers: a number is taken only as the kind that is asked for, never converted.
#include "model/fields.h"

#include "base/check.h"

namespace mmengine {
namespace {

const Json kAbsent;

std::string range(std::int64_t low, std::int64_t high) { return str("[", low, ", ", high, "]"); }

}  // namespace

const Json& Fields::value(const char* key) const {
  const auto found = object_.find(key);
  return found == object_.end() ? kAbsent : *found;
}

bool Fields::has(const char* key) const { return !value(key).is_null(); }

void Fields::missing(const char* key, const std::string& expected) const {
  throw Error(ErrorCode::model_format, file_, str(prefix_, key, ": missing, expected ", expected),
              {.reason = "missing_field", .file = file_});
}

void Fields::bad(const char* key, const std::string& expected) const {
  throw Error(ErrorCode::model_format, file_,
              str(prefix_, key, ": expected ", expected, ", got ", shown(value(key))),
              {.reason = "value", .file = file_});
}

void Fields::unsupported(const char* key, const std::string& supported) const {
  throw Error(ErrorCode::unsupported_model, file_,
              str(prefix_, key, ": ", present(key) ? shown(value(key)) : "what its absence means",
                  " is not supported by this version, supported: ", supported),
              {.reason = "config", .file = file_});
}

std::int64_t Fields::bounded(const char* key, const Json& value, std::int64_t low,
                             std::int64_t high, const char* kind) const {
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX)
                        : value.is_number_integer();
  if (!fits || value.get<std::int64_t>() < low || value.get<std::int64_t>() > high) {
    bad(key, str(kind, " in ", range(low, high)));
  }
  return value.get<std::int64_t>();
}

std::int64_t Fields::integer(const char* key, std::int64_t low, std::int64_t high) const {
  if (!has(key)) missing(key, str("an integer in ", range(low, high)));
  return bounded(key, value(key), low, high, "an integer");
}

std::int64_t Fields::integer(const char* key, std::int64_t low, std::int64_t high,
                             std::int64_t fallback) const {
  return has(key) ? integer(key, low, high) : fallback;
}

double Fields::number(const char* key, double low, double high, double fallback) const {
  if (!has(key)) return fallback;
  const Json& number = value(key);
  if (!number.is_number() || !(number.get<double>() >= low && number.get<double>() <= high)) {
    bad(key, str("a number in [", low, ", ", high, "]"));
  }
  return number.get<double>();
}

bool Fields::flag(const char* key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_boolean()) bad(key, "true or false");
  return value(key).get<bool>();
}

std::string Fields::text(const char* key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_string()) bad(key, "a string");
  return value(key).get<std::string>();
}

Fields Fields::object(const char* key) const {
  static const Json kEmpty = Json::object();
  if (has(key) && !value(key).is_object()) bad(key, "an object");
  return Fields(has(key) ? value(key) : kEmpty, file_, prefix_ + key + ".");
}

std::vector<std::int64_t> Fields::integers(const char* key, std::int64_t low,
                                           std::int64_t high) const {
  std::vector<std::int64_t> list;
  if (!has(key)) return list;
  const Json& one_or_more = value(key);
  if (!one_or_more.is_array()) return {integer(key, low, high)};
  for (const Json& item : one_or_more) {
    list.push_back(bounded(key, item, low, high, "integers"));
  }
  return list;
}

}  // namespace mmengine
