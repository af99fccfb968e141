// Which files hold the weights of a directory: the index says so when there is one, else the names
// do. Nothing is opened but the index and the manifest.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "model/config.h"

namespace mmengine {

struct Shards {
  std::vector<std::string> files;  // each once, each there, sorted
  bool indexed = false;
  std::string index;                                      // the name of the index file, or ""
  std::unordered_map<std::string, std::string> assigned;  // tensor -> file, of an index
};

// Error{model_not_found} lists every file that is missing; Error{model_format}: "path" for names
// that are not plain, "json" and "duplicate_key" for a bad index.
Shards find_shards(const Directory& directory, CheckpointLayout layout);

// An engine directory (params.json has an "mmengine" object) must have a manifest that agrees with
// the files: Error{model_format}, "manifest" or, for a size, "truncated". Others pass.
void check_manifest(const Directory& directory, const std::vector<std::string>& shards);

}  // namespace mmengine
