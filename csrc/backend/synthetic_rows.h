// SyntheticRows: the matrices of a model that has no files, for benchmarks and tests. An element is
// a function of the tensor's seed, its width, row and column alone and is made anew whenever its
// row is read: no memory, and the same values whatever else the model has, on any thread.
//
// Element = (b0 + b1 + b2 + b3 - 510) / (sigma sqrt(k)), b the bytes of a hash of seed, row and
// column, sigma the standard deviation of their sum: nearly normal, of standard deviation
// 1 / sqrt(k), at most 3.45 of them away from 0, so that activations keep their size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace mmengine {

class SyntheticRows {
 public:
  // dtype: f32, bf16, f16 or e4m3 as stored; of i8 and u8 only values can be read, which are those
  // of f32: the reader quantises them.
  SyntheticRows(std::uint64_t seed, DType dtype, std::int64_t k);
  void read(std::int64_t row, void* out) const;          // k elements of the dtype
  void read_values(std::int64_t row, float* out) const;  // the same as f32; e4m3: without scale

 private:
  static constexpr std::size_t kLevels = 4 * 255 + 1;  // sums of four bytes
  template <class To, class From>
  void look_up(std::int64_t row, const std::array<From, kLevels>& levels, To* out) const;

  std::uint64_t seed_;
  DType dtype_;
  std::int64_t k_;
  std::array<float, kLevels> values_{};
  std::array<std::uint16_t, kLevels> bits_{};  // of a dtype of at most two bytes
};

}  // namespace mmengine
