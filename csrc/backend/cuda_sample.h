// The lists of a step's sampling as one image, which is copied to the device at once: the rows,
// then what each of them that is sampled has in lists, one row after the other. Behind it, on the
// device alone, room for the logits that those lists change.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"

namespace mmengine {

class CudaSampleImage {
 public:
  // Of `rows` rows of `input`, whose arrays must live until write.
  CudaSampleImage(const SampleInput& input, int rows, std::int64_t vocab);

  std::size_t bytes() const { return changed_bias_; }
  std::size_t device_bytes() const { return device_bytes_; }
  // Enough for every step within the limits.
  static std::size_t most_device_bytes(const StepLimits& limits, std::int64_t vocab);

  void write(std::byte* image) const;  // bytes(), aligned to 16
  SampleInput input_on(std::byte* device) const;
  cuda::ChangedLogits changed_on(std::byte* device) const;

 private:
  struct Counts {
    std::int64_t rows = 0, bias = 0, count = 0, ban = 0, mask = 0;
  };
  explicit CudaSampleImage(const Counts& counts);

  SampleInput input_;
  int rows_ = 0;
  std::int64_t words_ = 0;  // of a mask
  // Where what begins; `row` at 0.
  std::size_t bias_ = 0, count_ = 0, ban_ = 0, mask_ = 0;
  std::size_t changed_bias_ = 0, changed_count_ = 0, changed_ban_ = 0, device_bytes_ = 0;
};

}  // namespace mmengine
