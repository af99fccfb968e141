// Finding shards by index or by name, and checking them against the manifest of an engine
// directory.
#include "model/shards.h"

#include <algorithm>
#include <set>
#include <string_view>

#include "base/check.h"
#include "model/fields.h"

namespace mmengine {
namespace {

constexpr std::uint64_t kMaxIndexBytes = 16 << 20;
constexpr std::uint64_t kMaxConfigBytes = 4 << 20;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kConvertAgain = "run mm-run convert again";

std::string listed(const std::set<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + printable(name);
  return out;
}

[[noreturn]] void shards_missing(const Directory& directory, const std::set<std::string>& names) {
  throw Error(ErrorCode::model_not_found, directory.display(),
              str("missing ", names.size(), " of the files with weights: ", listed(names),
                  "; download them again"),
              {.reason = "missing", .file = directory.display(*names.begin())});
}

void read_index(const Directory& directory, Shards& shards) {
  const Json json = read_json_file(directory, shards.index, kMaxIndexBytes);
  const Fields fields(json, directory.display(shards.index));
  if (!fields.has("weight_map") || !fields.value("weight_map").is_object()) {
    fields.bad("weight_map", "an object of tensor names and file names");
  }
  std::set<std::string> files, missing;
  for (const auto& [tensor, file] : fields.value("weight_map").items()) {
    if (!file.is_string()) {
      fields.bad("weight_map", str("a file name for ", printable(tensor)));
    }
    const auto& name = file.get_ref<const std::string&>();
    if (!files.insert(name).second) continue;
    if (!name.ends_with(".safetensors")) {
      throw Error(ErrorCode::unsupported_model, fields.file(),
                  str("weight_map: file ", printable(name),
                      " is not .safetensors; pickle formats are never loaded"),
                  {.reason = "pickle", .file = fields.file(), .tensor = tensor});
    }
    if (!directory.has(name)) missing.insert(name);
  }
  if (!missing.empty()) shards_missing(directory, missing);
  shards.files.assign(files.begin(), files.end());
  for (const auto& [tensor, file] : fields.value("weight_map").items()) {
    shards.assigned.emplace(tensor, file.get<std::string>());
  }
}

bool all_digits(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// The names that "model-00002-of-00005.safetensors" says there must be, this one included.
std::set<std::string> siblings(std::string_view name) {
  constexpr std::string_view kOf = "-of-", kSuffix = ".safetensors";
  constexpr std::size_t kMaxDigits = 5;
  const std::string_view stem = name.substr(0, name.size() - kSuffix.size());
  const std::size_t of = stem.rfind(kOf);
  const std::size_t dash = stem.rfind('-', of == std::string_view::npos ? of : of - 1);
  if (of == std::string_view::npos || of == 0 || dash == std::string_view::npos) return {};
  const std::string_view number = stem.substr(dash + 1, of - dash - 1);
  const std::string_view total = stem.substr(of + kOf.size());
  if (!all_digits(number) || !all_digits(total) || number.size() != total.size() ||
      total.size() > kMaxDigits) {
    return {};
  }
  std::set<std::string> names;
  const int count = std::stoi(std::string(total));
  for (int i = 1; i <= count; ++i) {
    std::string padded = std::to_string(i);
    padded.insert(0, total.size() - padded.size(), '0');
    names.insert(str(stem.substr(0, dash + 1), padded, kOf, total, kSuffix));
  }
  return names;
}

void find_by_name(const Directory& directory, CheckpointLayout layout, Shards& shards) {
  const bool mistral = layout == CheckpointLayout::mistral;
  std::set<std::string> missing;
  for (const std::string& name : directory.names()) {
    if (!name.ends_with(".safetensors")) continue;
    const std::set<std::string> set = siblings(name);
    const bool ours =
        mistral ? name.starts_with("consolidated")
                : name == "model.safetensors" || (name.starts_with("model-") && !set.empty());
    if (!ours) continue;
    shards.files.push_back(name);
    for (const std::string& sibling : set) {
      if (!directory.has(sibling)) missing.insert(sibling);
    }
  }
  if (!missing.empty()) shards_missing(directory, missing);
  if (shards.files.empty()) {
    shards_missing(directory, {mistral ? "consolidated.safetensors" : "model.safetensors"});
  }
}

}  // namespace

Shards find_shards(const Directory& directory, CheckpointLayout layout) {
  Shards shards;
  shards.index = layout == CheckpointLayout::mistral ? "consolidated.safetensors.index.json"
                                                     : "model.safetensors.index.json";
  shards.indexed = directory.has(shards.index);
  if (shards.indexed) {
    read_index(directory, shards);
  } else {
    find_by_name(directory, layout, shards);
  }
  return shards;
}

void check_manifest(const Directory& directory, const std::vector<std::string>& shards) {
  const Json params = read_json_file(directory, "params.json", kMaxConfigBytes);
  if (!Fields(params, directory.display("params.json")).has("mmengine")) return;
  const std::string where = directory.display(kManifest);
  auto refuse = [&](const char* reason, const std::string& message) {
    throw Error(ErrorCode::model_format, where, str(message, "; ", kConvertAgain),
                {.reason = reason, .file = where});
  };
  if (!directory.has(kManifest)) {
    refuse("manifest", "missing, expected it beside a params.json with an mmengine object");
  }
  const Json json = read_json_file(directory, kManifest, kMaxConfigBytes);
  const Fields manifest(json, where);
  if (manifest.integer("format", 1, INT32_MAX) != 1) manifest.unsupported("format", "1");
  const Fields files = manifest.object("files");
  for (const std::string& shard : shards) {
    if (!files.has(shard.c_str())) refuse("manifest", str("does not list ", printable(shard)));
  }
  for (const auto& [name, entry] : manifest.value("files").items()) {
    if (!entry.is_object()) files.bad(name.c_str(), "an object with size and sha256");
    const Fields fields = files.object(name.c_str());
    const auto expected = static_cast<std::uint64_t>(fields.integer("size", 0, INT64_MAX));
    if (!directory.has(name))
      refuse("manifest", str("lists ", printable(name), ", which is missing"));
    const std::uint64_t found = directory.size(name);
    if (found != expected) {
      refuse("truncated",
             str(printable(name), ": expected ", expected, " bytes, found ", found, " bytes"));
    }
  }
}

}  // namespace mmengine
