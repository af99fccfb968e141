#include "backend/synthetic_rows.h"

#include <algorithm>
#include <cmath>

#include "backend/backend.h"
#include "base/check.h"

namespace mmengine {
namespace {

constexpr int kMean = 2 * 255;
constexpr std::int64_t kChunk = 256;

// The finaliser of splitmix64: each bit of the result depends on all bits of x.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Of a sum of four bytes, each uniform in 0 .. 255.
double sigma() { return std::sqrt(4 * (256.0 * 256.0 - 1) / 12); }

float step(std::int64_t k) {
  return static_cast<float>(1.0 / (sigma() * std::sqrt(static_cast<double>(k))));
}

// sums[i] = the sum of the four bytes that belong to column first + i. A loop without branches or
// 64-bit products, for a compiler with vectors of any width. Half of the key comes in between the
// products: rows whose counters overlap would else be shifted copies of each other.
void sum_bytes(std::uint64_t key, std::uint32_t first, std::uint32_t* sums) {
  const auto low = static_cast<std::uint32_t>(key), high = static_cast<std::uint32_t>(key >> 32);
  for (std::uint32_t i = 0; i < kChunk; ++i) {
    std::uint32_t x = low + first + i;
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x ^= high;
    x = (x ^ (x >> 15)) * 0x735a2d97u;
    x ^= x >> 15;
    const std::uint32_t pairs = (x & 0x00ff00ffu) + ((x >> 8) & 0x00ff00ffu);
    sums[i] = (pairs & 0xffffu) + (pairs >> 16);
  }
}

}  // namespace

std::uint64_t synthetic_seed(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return mix(hash);
}

float synthetic_fp8_scale(std::int64_t k) { return step(k) * static_cast<float>(kMean) / kMaxE4m3; }

SyntheticRows::SyntheticRows(std::uint64_t seed, DType dtype, std::int64_t k)
    : seed_(seed), dtype_(dtype), k_(k) {
  for (std::size_t level = 0; level < kLevels; ++level) {
    const auto centred = static_cast<float>(static_cast<int>(level) - kMean);
    const float value = centred * step(k);
    switch (dtype) {
      case DType::bf16:
        bits_[level] = f32_to_bf16(value);
        values_[level] = bf16_to_f32(bits_[level]);
        break;
      case DType::f16:
        bits_[level] = f32_to_f16(value);
        values_[level] = f16_to_f32(bits_[level]);
        break;
      case DType::e4m3: {
        const std::uint8_t code = f32_to_e4m3(centred * kMaxE4m3 / static_cast<float>(kMean));
        bits_[level] = code;
        values_[level] = e4m3_to_f32(code);
        break;
      }
      default:
        values_[level] = value;
    }
  }
}

template <class To, class From>
void SyntheticRows::look_up(std::int64_t row, const std::array<From, kLevels>& levels,
                            To* out) const {
  const std::uint64_t key = mix(seed_ ^ mix(static_cast<std::uint64_t>(row)));
  std::array<std::uint32_t, kChunk> sums;
  for (std::int64_t first = 0; first < k_; first += kChunk) {
    sum_bytes(key, static_cast<std::uint32_t>(first), sums.data());
    const auto count = static_cast<std::size_t>(std::min(kChunk, k_ - first));
    for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<To>(levels[sums[i]]);
    out += count;
  }
}

void SyntheticRows::read(std::int64_t row, void* out) const {
  MM_CHECK(dtype_ != DType::i8 && dtype_ != DType::u8, "synthetic_rows",
           "groups have no stored codes");
  switch (dtype_bytes(dtype_)) {
    case 1:
      return look_up(row, bits_, static_cast<std::uint8_t*>(out));
    case 2:
      return look_up(row, bits_, static_cast<std::uint16_t*>(out));
    default:
      return look_up(row, values_, static_cast<float*>(out));
  }
}

void SyntheticRows::read_values(std::int64_t row, float* out) const { look_up(row, values_, out); }

}  // namespace mmengine
