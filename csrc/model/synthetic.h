// Models that have no files: "synthetic:NAME[,layers=N]" or "synthetic:FILE.json[,layers=N]" stands
// for random weights of a real model's shapes, for benchmarks, plans and tests, never for text. The
// values of a tensor depend on its name and width alone (backend/synthetic_rows.h), so that fewer
// layers are the first layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace mmengine {

constexpr std::string_view kSynthetic = "synthetic:";
inline bool is_synthetic(const std::string& model) { return model.starts_with(kSynthetic); }

// Of a known name, "mistral-medium-3.5" or "llama-3.2-1b", or of a file with the fields of
// params.json. Error{model_not_found} for another name, Error{usage} for an unknown option or a bad
// number of layers, and the errors of read_config.
ModelConfig read_synthetic(const std::string& model, std::vector<std::string>& warnings);

struct SyntheticTensor {
  std::string name;  // ours
  DType dtype = DType::bf16;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> data;  // of norms (1) and scales; empty: random values
};

// All that the config calls for, as a released checkpoint has it: linears in e4m3 with one bf16
// scale each and, under fixed activations, one of their input, which leaves room for inputs of 7
// (down_proj: 14) standard deviations. Scales and minima of groups have no data: their matrices are
// quantised when they are read.
std::vector<SyntheticTensor> synthetic_tensors(const ModelConfig& config);

}  // namespace mmengine
