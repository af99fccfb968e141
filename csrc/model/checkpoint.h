// Checkpoint: the tensors of one directory under OUR names, whatever layout it has (HF, Mistral, or
// an engine directory made by `mm-run convert`, which is the Mistral layout with a manifest). Owns
// the mapped files; HostTensors borrow from it. Read-only after open; any thread. The names are
// listed in model/tensor_names.h. A synthetic model (model/synthetic.h) is a checkpoint without
// files: its matrices have no data, only a seed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace mmengine {

// An EAGLE draft head (model-spec 6.1) has decoder layers and a first linear of its own, and takes
// the embeddings and the head of the model that it drafts for.
enum class CheckpointKind { model, draft_head };

class Checkpoint {
 public:
  // Opens every file, checks every header and that every tensor that `config` calls for is there,
  // with the scales that an e4m3 weight needs: its own and, under ActivationScheme::fixed, one of
  // its input; and the scales and minima of groups (ModelConfig::group_format). Missing ones are
  // all listed in one error. "lm_head" may be absent where the config ties it. Of a vision tower
  // either every tensor is there or none, with a warning. Dtypes and shapes of scales are checked,
  // too. Reads no weight and no scale.
  static Checkpoint open(const std::string& directory, const ModelConfig& config);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();
  // As it was given, with what only the files say: fixed activation scales that no config tells of.
  const ModelConfig& config() const;
  CheckpointKind kind() const;
  bool has(const std::string& name) const;
  // Its data may be unaligned. Error{model_format} names file and tensor.
  HostTensor tensor(const std::string& name) const;
  // The tensor's pages may leave memory; they come back when it is read again. Any thread.
  void release(const std::string& name) const noexcept;
  TensorSource source(const std::string& name) const;  // the tensor's own name in its file
  RowOrder row_order() const;                          // of the rows of q_proj and k_proj
  std::uint64_t bytes() const;                         // of all tensors under our names
  std::vector<std::string> names() const;              // ours, sorted
  std::string layout() const;                          // "hf" | "mistral" | "synthetic"
  const std::vector<std::string>& warnings() const;    // one sentence each

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mmengine
