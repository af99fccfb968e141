#include "backend/row_values.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"

namespace mmengine {
namespace {

// A file may have its tensors at any byte.
template <class T, class Convert>
void widen(const std::byte* data, std::int64_t k, float* out, Convert convert) {
  for (std::int64_t i = 0; i < k; ++i) {
    T value;
    std::memcpy(&value, data + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
    out[i] = convert(value);
  }
}

const std::byte* stored_row(const HostTensor& tensor, std::int64_t row) {
  return static_cast<const std::byte*>(tensor.data) +
         row * tensor.shape[1] * static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
}

void widen_groups(const HostWeight::Part& part, std::int64_t row, std::int64_t k, float* out) {
  const std::byte* data = stored_row(part.weight, row);
  const std::int64_t groups = num_groups(k);
  for (std::int64_t g = 0; g < groups; ++g) {
    const float scale = read_element(part.weight_scale, row * groups + g);
    const std::int64_t count = std::min(kGroup, k - g * kGroup);
    float* to = out + g * kGroup;
    if (part.weight.dtype == DType::i8) {
      for (std::int64_t i = 0; i < count; ++i) {
        to[i] = scale * static_cast<float>(static_cast<std::int8_t>(data[g * kGroup + i]));
      }
      continue;
    }
    const float min = read_element(part.weight_min, row * groups + g);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto pair = std::to_integer<unsigned>(data[g * kGroup / 2 + i % (kGroup / 2)]);
      const unsigned code = i < kGroup / 2 ? pair & 15u : pair >> 4;
      to[i] = scale * static_cast<float>(code) + min;
    }
  }
}

}  // namespace

void read_values(const HostWeight::Part& part, std::int64_t row, std::int64_t k, float* out) {
  const std::byte* data = stored_row(part.weight, row);
  switch (part.weight.dtype) {
    case DType::f32:
      std::memcpy(out, data, static_cast<std::size_t>(k) * sizeof(float));
      return;
    case DType::bf16:
      return widen<std::uint16_t>(data, k, out, bf16_to_f32);
    case DType::f16:
      return widen<std::uint16_t>(data, k, out, f16_to_f32);
    case DType::e4m3:
      return widen<std::uint8_t>(data, k, out, e4m3_to_f32);
    default:
      return widen_groups(part, row, k, out);
  }
}

void read_codes(const HostWeight::Part& part, std::int64_t row, std::int64_t k,
                std::uint8_t* codes) {
  const auto* data = reinterpret_cast<const std::uint8_t*>(stored_row(part.weight, row));
  const std::int64_t groups = num_groups(k);
  if (part.weight.dtype == DType::i8) {
    std::copy_n(data, k, codes);
  } else {
    constexpr std::int64_t kHalf = kGroup / 2;
    for (std::int64_t g = 0; g < groups; ++g) {
      for (std::int64_t j = 0; j < kHalf; ++j) {
        codes[g * kGroup + j] = data[g * kHalf + j] & 15u;
        codes[g * kGroup + kHalf + j] = static_cast<std::uint8_t>(data[g * kHalf + j] >> 4);
      }
    }
  }
  std::fill(codes + k, codes + groups * kGroup, std::uint8_t{0});
}

}  // namespace mmengine
