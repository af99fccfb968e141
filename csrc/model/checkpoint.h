// Checkpoint: the tensors of one directory under OUR names, whatever layout it has (HF, Mistral, or
// an engine directory made by `mm-run convert`, which is the Mistral layout with a manifest). Owns
// the mapped files; HostTensors borrow from it. Read-only after open; any thread.
//
// Names: "embed_tokens", "lm_head", "norm", "layers.N.{input_norm,post_norm}",
// "layers.N.{q,k,v,o,gate,up,down}_proj"; a scale is NAME + ".weight_scale".
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace mmengine {

class Checkpoint {
 public:
  // Opens every file, checks every header and that every tensor of `num_layers` layers is there
  // with the scale that an e4m3 weight needs; missing ones are all listed in one error. "lm_head"
  // may be absent: a tied head. Reads no weight.
  static Checkpoint open(const std::string& directory, std::int64_t num_layers);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();
  bool has(const std::string& name) const;
  // Its data may be unaligned. Error{model_format} names file and tensor.
  HostTensor tensor(const std::string& name) const;
  // The tensor's pages may leave memory; they come back when it is read again. Any thread.
  void release(const std::string& name) const noexcept;
  TensorSource source(const std::string& name) const;  // the tensor's own name in its file
  RowOrder row_order() const;                          // of the rows of q_proj and k_proj
  std::uint64_t bytes() const;                         // of all tensors under our names
  std::vector<std::string> names() const;              // ours, sorted
  std::string layout() const;                          // "hf" | "mistral"
  const std::vector<std::string>& warnings() const;    // one sentence each

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mmengine
