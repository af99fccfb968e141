// Parsing in three passes, each of which may assume what the one before has checked: the eight
// length bytes, the JSON events of the header, the extents of all tensors together. A wrong kind of
// value is reported only after the whole header was valid JSON, so that depth and syntax come
// first.
#include "model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "model/json.h"

namespace mmengine {
namespace {

constexpr std::uint64_t kLengthBytes = 8;

struct Magic {
  std::string_view bytes;
  const char* reason;
  const char* message;
};

constexpr const char* kPickle = "is a pickle, not safetensors; pickle formats are never loaded";
constexpr Magic kMagics[] = {
    {"PK\x03\x04", "pickle",
     "is a zip archive as torch.save writes it, not safetensors; pickle "
     "formats are never loaded"},
    {"\x80\x02", "pickle", kPickle},
    {"\x80\x03", "pickle", kPickle},
    {"\x80\x04", "pickle", kPickle},
    {"\x80\x05", "pickle", kPickle},
    {"GGUF", "gguf", "is GGUF, not safetensors; rename it to .gguf and use mm-run convert"},
    {"version https://git-lfs", "lfs_pointer",
     "is a Git LFS pointer, not the weights; run git lfs pull"},
};

struct KnownDType {
  std::string_view name;
  DType dtype;
};

constexpr KnownDType kKnownDTypes[] = {
    {"F32", DType::f32}, {"BF16", DType::bf16}, {"F16", DType::f16}, {"F8_E4M3", DType::e4m3},
    {"I8", DType::i8},   {"U8", DType::u8},     {"U16", DType::u16}, {"I32", DType::i32},
    {"U32", DType::u32}, {"I64", DType::i64}};

struct Entry {
  TensorInfo info;
  std::uint64_t begin = 0, end = 0;  // in the data, as the header says
};

Error format_error(const std::string& file, const char* reason, const std::string& message,
                   const std::string& tensor = {}) {
  return Error(ErrorCode::model_format, file, message,
               {.reason = reason, .file = file, .tensor = tensor});
}

class HeaderReader final : public JsonReader {
 public:
  using JsonReader::JsonReader;

  std::vector<Entry> take() {
    if (problem_) throw *problem_;
    return std::move(entries_);
  }

  bool null() override { return scalar("null"); }
  bool boolean(bool) override { return scalar("a boolean"); }
  // The parser calls it for numbers with a minus sign only, -0 among them.
  bool number_integer(number_integer_t v) override {
    return scalar(v == 0 ? "-0" : std::to_string(v));
  }
  bool number_float(number_float_t, const string_t& text) override { return scalar(text); }
  bool number_unsigned(number_unsigned_t value) override {
    if (problem_ || ignored()) return true;
    if (depth() != 3) return scalar(std::to_string(value));
    if (field_ == Field::shape) {
      if (current_.info.rank == kMaxTensorRank) {
        throw format_error(source().file, "rank",
                           str("tensor ", printable(current_.info.name), " has rank > ",
                               kMaxTensorRank, ", expected at most ", kMaxTensorRank),
                           current_.info.name);
      }
      current_.info.dims[current_.info.rank++] = value;
    } else {
      if (num_offsets_ < 2) (num_offsets_ == 0 ? current_.begin : current_.end) = value;
      ++num_offsets_;
    }
    return true;
  }
  bool string(string_t& value) override {
    if (problem_ || ignored() || (depth() == 2 && in_metadata_)) return true;
    if (depth() != 2 || field_ != Field::dtype) return scalar(printable(value));
    const auto* known = std::find_if(std::begin(kKnownDTypes), std::end(kKnownDTypes),
                                     [&](const KnownDType& k) { return k.name == value; });
    if (known == std::end(kKnownDTypes)) {
      problem_ =
          Error(ErrorCode::unsupported_model, source().file,
                str("tensor ", printable(current_.info.name), " has dtype ", printable(value),
                    ", supported: F32, BF16, F16, F8_E4M3, I8, U8, U16, I32, U32, I64"),
                {.reason = "dtype", .file = source().file, .tensor = current_.info.name});
    } else {
      current_.info.dtype = known->dtype;
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (depth() >= 2) scalar("an object");
    enter();
    return true;
  }
  bool start_array(std::size_t) override {
    const bool list = field_ == Field::shape || field_ == Field::data_offsets;
    if (!(depth() == 2 && list && !in_metadata_)) scalar("an array");
    enter();
    return true;
  }
  bool end_array() override {
    leave();
    return true;
  }
  bool end_object() override {
    leave();
    if (depth() == 1 && !problem_ && !in_metadata_) finish_tensor();
    return true;
  }

  bool key(string_t& name) override {
    if (problem_) return true;
    if (depth() == 1) {
      start_entry(name);
    } else if (depth() == 2 && in_metadata_) {
      if (metadata_keys_.size() == kMaxFileTensors) {
        throw format_error(source().file, "too_many_tensors",
                           str("__metadata__ has more than ", kMaxFileTensors, " entries"));
      }
      if (!metadata_keys_.insert(name).second) duplicate("key of __metadata__", name);
    } else if (depth() == 2) {
      start_field(name);
    }
    return true;
  }

 protected:
  std::string place() const override { return current_.info.name; }

 private:
  enum class Field { other, dtype, shape, data_offsets };

  // Fields that the format does not define may hold anything.
  bool ignored() const { return depth() >= 2 && !in_metadata_ && field_ == Field::other; }

  // A value where the format has another kind of value.
  bool scalar(const std::string& got) {
    if (problem_ || ignored()) return true;
    const std::string& name = current_.info.name;
    const char* reason = "header_json";
    std::string expected;
    if (depth() == 0) {
      expected = "header: expected an object";
    } else if (depth() == 1) {
      expected = str("tensor ", printable(name), ": expected an object");
    } else if (in_metadata_) {
      expected = "__metadata__: expected strings only";
    } else if (field_ == Field::dtype) {
      expected = str("tensor ", printable(name), ": dtype: expected a string");
    } else {
      reason = field_ == Field::shape ? "shape" : "offsets";
      expected =
          str("tensor ", printable(name), ": ", field_ == Field::shape ? "shape" : "data_offsets",
              ": expected a list of integers in [0, 2^64)");
    }
    problem_ =
        format_error(source().file, reason,
                     str(expected, ", got ", got.size() > 80 ? got.substr(0, 80) : got), name);
    return true;
  }

  [[noreturn]] void duplicate(const std::string& what, const std::string& name) {
    throw format_error(source().file, "duplicate_key",
                       str(what, " ", printable(name), " appears twice"), current_.info.name);
  }

  void start_entry(const std::string& name) {
    current_ = {};
    current_.info.name = name;
    fields_seen_ = 0;
    num_offsets_ = 0;
    field_ = Field::other;
    if (!names_.insert(name).second) duplicate("tensor", name);
    in_metadata_ = name == "__metadata__";
    if (in_metadata_) return;
    if (entries_.size() == kMaxFileTensors) {
      throw format_error(source().file, "too_many_tensors",
                         str("expected at most ", kMaxFileTensors, " tensors in a file, got more"));
    }
    for (char c : name) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte < 0x20 || byte == 0x7f || c == '/' || c == '\\') {
        throw format_error(source().file, "name",
                           str("tensor name ", printable(name),
                               " holds a slash or a control byte, expected a plain name"),
                           name);
      }
    }
  }

  void start_field(const std::string& name) {
    field_ = name == "dtype"          ? Field::dtype
             : name == "shape"        ? Field::shape
             : name == "data_offsets" ? Field::data_offsets
                                      : Field::other;
    if (field_ == Field::other) return;
    const unsigned bit = 1u << static_cast<unsigned>(field_);
    if (fields_seen_ & bit)
      duplicate(str("tensor ", printable(current_.info.name), ": field"), name);
    fields_seen_ |= bit;
  }

  void finish_tensor() {
    constexpr unsigned kAllFields = 0b1110;
    const std::string& name = current_.info.name;
    if (fields_seen_ != kAllFields) {
      problem_ = format_error(
          source().file, "header_json",
          str("tensor ", printable(name), " lacks a field, expected dtype, shape and data_offsets"),
          name);
      return;
    }
    if (num_offsets_ != 2) {
      problem_ = format_error(source().file, "offsets",
                              str("tensor ", printable(name),
                                  ": data_offsets: expected 2 integers, got ", num_offsets_),
                              name);
      return;
    }
    entries_.push_back(std::move(current_));
    current_ = {};
  }

  std::vector<Entry> entries_;
  std::unordered_set<std::string> names_, metadata_keys_;
  std::optional<Error> problem_;  // the first; thrown when the JSON proved to be valid
  Entry current_;
  Field field_ = Field::other;
  unsigned fields_seen_ = 0;
  std::size_t num_offsets_ = 0;
  bool in_metadata_ = false;
};

std::uint64_t read_length(const std::byte* data) {
  std::uint64_t length = 0;
  for (std::uint64_t i = kLengthBytes; i-- > 0;) {  // little-endian on disk
    length = length << 8 | static_cast<std::uint64_t>(data[i]);
  }
  return length;
}

void refuse_other_formats(std::string_view begin, const std::string& file) {
  // A header of 640 bytes has a length that begins like a pickle: the brace tells them apart.
  if (begin.size() > kLengthBytes && begin[kLengthBytes] == '{') return;
  for (const Magic& magic : kMagics) {
    if (begin.starts_with(magic.bytes)) throw format_error(file, magic.reason, magic.message);
  }
}

void check_size(const Entry& entry, const std::string& file) {
  const TensorInfo& info = entry.info;
  std::uint64_t bytes = dtype_bytes(info.dtype);
  bool overflow = false;
  std::uint64_t count = 1;
  for (std::size_t i = 0; i < info.rank; ++i) {
    overflow |= __builtin_mul_overflow(count, info.dims[i], &count);
  }
  overflow |= __builtin_mul_overflow(bytes, count, &bytes);
  if (overflow) {
    throw format_error(file, "overflow",
                       str("tensor ", printable(info.name), ": its size does not fit 64 bits"),
                       info.name);
  }
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    throw format_error(
        file, "offsets",
        str("tensor ", printable(info.name), ": data_offsets: expected ", bytes,
            " bytes as dtype and shape say, got [", entry.begin, ", ", entry.end, "]"),
        info.name);
  }
}

// Sorted entries lie end to end from 0 to `data_bytes`.
void check_extents(const std::vector<Entry>& entries, std::uint64_t header_end,
                   std::uint64_t file_bytes, const std::string& file) {
  std::uint64_t end = 0;
  const Entry* last = nullptr;
  for (const Entry& entry : entries) {
    if (entry.begin != end) {
      const std::string before =
          last != nullptr ? "tensor " + printable(last->info.name) : std::string("the header");
      throw format_error(file, "offsets",
                         str("tensor ", printable(entry.info.name),
                             entry.begin < end ? " overlaps " : " leaves a hole after ", before,
                             ", expected it to begin at ", end, ", got ", entry.begin),
                         entry.info.name);
    }
    end = entry.end;
    last = &entry;
  }
  if (end != file_bytes - header_end) {
    throw format_error(file, "truncated",
                       str("expected ", end, " bytes of tensor data, found ",
                           file_bytes - header_end, " bytes; re-download the file"));
  }
}

}  // namespace

std::vector<TensorInfo> parse_safetensors(const std::byte* data, std::uint64_t file_bytes,
                                          const std::string& file) {
  const std::string_view text(reinterpret_cast<const char*>(data), file_bytes);
  refuse_other_formats(text, file);
  if (file_bytes < kLengthBytes) {
    throw format_error(file, "header_too_small",
                       str("expected at least ", kLengthBytes, " bytes, got ", file_bytes,
                           "; re-download the file"));
  }
  const std::uint64_t length = read_length(data);
  if (length > kMaxHeaderBytes) {
    throw format_error(
        file, "header_too_large",
        str("header length: expected at most ", kMaxHeaderBytes, " bytes, got ", length));
  }
  if (length > file_bytes - kLengthBytes) {
    throw format_error(file, "header_length",
                       str("header length: expected at most ", file_bytes - kLengthBytes,
                           " bytes, the rest of the file, got ", length, "; re-download the file"));
  }
  const JsonSource source{.file = file, .offset = kLengthBytes, .reason = "header_json"};
  const std::string_view header = text.substr(kLengthBytes, length);
  if (header.empty() || header.front() != '{') {
    throw Error(ErrorCode::model_format, file,
                str("header: expected '{' at byte ", kLengthBytes, ", got ",
                    header.empty() ? "nothing" : printable(header.substr(0, 1))),
                {.reason = source.reason, .file = file, .offset = source.offset});
  }
  HeaderReader reader(source);
  read_json(header, source, reader);
  std::vector<Entry> entries = reader.take();
  for (const Entry& entry : entries) check_size(entry, file);
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  const std::uint64_t header_end = kLengthBytes + length;
  check_extents(entries, header_end, file_bytes, file);
  std::vector<TensorInfo> tensors;
  tensors.reserve(entries.size());
  for (Entry& entry : entries) {
    entry.info.offset = header_end + entry.begin;
    entry.info.bytes = entry.end - entry.begin;
    tensors.push_back(std::move(entry.info));
  }
  return tensors;
}

}  // namespace mmengine
