// The header of a safetensors file, read as data from an enemy: either every tensor lies inside the
// file, with its size, and all tensors together fill it without hole or overlap, or Error. Memory
// is taken for tensors that are there, never for a number that the file names.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace mmengine {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kMaxFileTensors = 65'536;
constexpr std::size_t kMaxTensorRank = 8;

struct TensorInfo {
  std::string name;  // no control bytes, no slashes
  DType dtype = DType::f32;
  std::size_t rank = 0;
  std::array<std::uint64_t, kMaxTensorRank> dims{};  // the first `rank`
  std::uint64_t offset = 0, bytes = 0;               // from the begin of the file
};

// Tensors in the order of the file. `file` is only named in errors. Error{model_format}: reasons
// header_too_small header_too_large header_length header_json depth duplicate_key name shape rank
// overflow offsets truncated too_many_tensors pickle gguf lfs_pointer; Error{unsupported_model,
// "dtype"}.
std::vector<TensorInfo> parse_safetensors(const std::byte* data, std::uint64_t file_bytes,
                                          const std::string& file);

}  // namespace mmengine
