// Memory, planned before it exists. A Layout collects named Slices; an Arena is one allocation of
// Layout::bytes() and turns Slices into views. Nothing else hands out device memory, so the plan
// that is printed and the memory that is used are the same list.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/tensor.h"

namespace mmengine {

struct Slice {  // a TensorView that has no memory yet
  std::size_t offset = 0;
  DType dtype = DType::u8;
  Shape shape;
};

class Layout {
 public:
  struct Region {
    std::string name;
    std::size_t bytes;
  };
  static constexpr std::size_t kAlignment = 256;

  // Sizes are checked: Error{resource} when the sum does not fit 63 bits.
  Slice add(std::string_view name, DType dtype, Shape shape);
  std::size_t bytes() const { return bytes_; }
  const std::vector<Region>& regions() const { return regions_; }

 private:
  std::vector<Region> regions_;
  std::size_t bytes_ = 0;
};

class Buffer {  // owns; move-only
 public:
  using Free = void (*)(void* data, std::size_t bytes);
  Buffer() = default;
  Buffer(void* data, std::size_t bytes, Free free) : data_(data), bytes_(bytes), free_(free) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) free_(data_, bytes_);
  }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(free_, other.free_);
  }
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Free free_ = nullptr;
};

class Arena {
 public:
  Arena() = default;
  explicit Arena(Buffer buffer) : buffer_(std::move(buffer)) {}
  TensorView operator[](const Slice& slice) const;  // checks that the slice lies inside
  std::size_t bytes() const { return buffer_.bytes(); }

 private:
  Buffer buffer_;
};

// Anonymous memory of this process, zero-filled, page-aligned, untouched pages cost nothing.
// Error{resource} when the system refuses.
Buffer allocate_host(std::size_t bytes);

}  // namespace mmengine
