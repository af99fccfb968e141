// Carver: cuts the arrays of one stage off the scratch memory, each on a cache line of its own. On
// null memory it only counts: traits and stages share the same list of arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "base/tensor.h"

namespace mmengine {

class Carver {
 public:
  Carver() = default;
  explicit Carver(TensorView memory)
      : data_(memory.as<std::byte>()),
        limit_(static_cast<std::size_t>(memory.shape.count()) * dtype_bytes(memory.dtype)) {}

  float* floats(std::int64_t count) {
    const std::size_t begin = bytes_;
    bytes_ += (static_cast<std::size_t>(count) * sizeof(float) + 63) / 64 * 64;
    if (data_ == nullptr) return nullptr;
    MM_CHECK(bytes_ <= limit_, "scratch", "expected at least ", bytes_, " bytes, got ", limit_);
    return reinterpret_cast<float*>(data_ + begin);
  }

  TensorView matrix(std::int64_t rows, std::int64_t columns) {
    return {floats(rows * columns), DType::f32, {rows, columns}, columns};
  }

  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t limit_ = 0, bytes_ = 0;
};

}  // namespace mmengine
