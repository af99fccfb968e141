// Shape and TensorView: a typed, strided, non-owning rectangle of memory on any device. Views are
// plain values; who owns the memory is written where the memory is made (Arena, Checkpoint).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/dtype.h"

namespace mmengine {

struct Shape {
  std::array<std::int64_t, 4> dims{1, 1, 1, 1};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> d) : rank(static_cast<int>(d.size())) {
    int i = 0;
    for (std::int64_t v : d) dims[i++] = v;
  }
  std::int64_t operator[](int i) const { return dims[i]; }
  std::int64_t count() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
};

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape;
  std::int64_t row_stride = 0;  // elements from one row (dims[0]) to the next

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  TensorView rows(std::int64_t n) const { return rows(0, n); }
  TensorView rows(std::int64_t begin, std::int64_t n) const {
    TensorView v = *this;
    v.data = static_cast<char*>(data) + begin * row_stride * std::int64_t(dtype_bytes(dtype));
    v.shape.dims[0] = n;
    return v;
  }
  explicit operator bool() const { return data != nullptr; }
};

}  // namespace mmengine
