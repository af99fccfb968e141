// Norm, gating and the probes of memory and arithmetic on eight lanes.
#pragma once

#include "base/dtype.h"
#include "kernels/cpu/launch.h"
#include "kernels/cpu/math_impl.h"
#include "kernels/cpu/micro_impl.h"

namespace mmengine::cpu::MM_LEVEL {

void rms_norm(const float* x, const float* gain, float eps, std::int64_t n, float* out) {
  F8 squares[4] = {zero(), zero(), zero(), zero()};
  for (std::int64_t i = 0; i < n; i += 8) {
    const F8 v = load_first(x + i, n - i);
    squares[i / 8 % 4] = fma(v, v, squares[i / 8 % 4]);
  }
  const float mean =
      sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(n);
  const F8 inverse = splat(1.0f / square_root(mean + eps));
  for (std::int64_t i = 0; i < n; i += 8) {
    store_first(out + i, n - i, load_first(x + i, n - i) * inverse * load_first(gain + i, n - i));
  }
}

void silu_mul(const float* tile, const float* scales, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; i += kWideLanes) {
    Wide gate = load_of<Wide>(tile + i), up = load_of<Wide>(tile + 16 + i);
    if (scales != nullptr) {
      gate = gate * load_of<Wide>(scales + i);
      up = up * load_of<Wide>(scales + 16 + i);
    }
    const Wide gated = gate / (splat_of<Wide>(1.0f) + exp(zero_of<Wide>() - gate)) * up;
    if (n - i >= kWideLanes) {
      store(out + i, gated);
    } else {
      float lanes[kWideLanes];
      store(lanes, gated);
      for (std::int64_t j = i; j < n; ++j) out[j] = lanes[j - i];
    }
  }
}

void put_tile(const TileOut& t) {
  for (int r = 0; r < t.rows; ++r) {
    const F8 own = splat(t.row_scales != nullptr ? t.row_scales[r] : 1.0f);
    float* out = t.out + r * t.stride;
    for (std::int64_t i = 0; i < t.columns; i += 8) {
      F8 v = load(t.tile + r * kBlockRows + i);
      if (t.scales != nullptr) v = v * (own * load(t.scales + i));
      if (t.add) v = load_first(out + i, t.columns - i) + v;
      store_first(out + i, t.columns - i, v);
    }
  }
}

inline F8 code(F8 v) {  // NaN stays NaN
  return round_to_e4m3(min(splat(kMaxE4m3), max(splat(-kMaxE4m3), v)));
}

void quantise(float* x, std::int64_t n, float scale) {
  const F8 s = splat(scale);
  for (std::int64_t i = 0; i < n; i += 8) {
    store_first(x + i, n - i, code(load_first(x + i, n - i) / s));
  }
}

float quantise_row(float* x, std::int64_t n) {
  F8 largest = zero();  // not of NaN, which makes its outputs NaN without it
  for (std::int64_t i = 0; i < n; i += 8) {
    const F8 v = load_first(x + i, n - i);
    largest = max(max(v, zero() - v), largest);
  }
  const float scale = e4m3_scale(highest(largest));
  quantise(x, n, scale);
  return scale;
}

void exp_all(const float* x, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; i += 8) {
    store_first(out + i, n - i, exp(load_first(x + i, n - i)));
  }
}

std::uint64_t read(const void* data, std::size_t bytes, bool pages_in_turn) {
  const float* p = static_cast<const float*>(data);
  const auto* begin = static_cast<const std::byte*>(data);
  const Stream stream{begin, begin + bytes, begin};
  constexpr std::size_t kVectors = 8, kFloats = 128, kPart = 16;  // a turn's run; a line
  Wide sums[kVectors];
  for (Wide& s : sums) s = zero_of<Wide>();
  for (std::size_t i = 0; i + kFloats <= bytes / sizeof(float); i += kFloats) {
    const Turn turn = turn_of(stream, p + i);
#pragma GCC unroll 8
    for (std::size_t line = 0; line < kFloats / kPart; ++line) {
      const float* at = p + i + line * kPart;
      if (pages_in_turn) {
        turn.ask(static_cast<int>(line));
      } else {
        prefetch(at + 1024);
      }
      for (std::size_t j = 0; j < kPart; j += kWideLanes) {
        Wide& part = sums[(line * kPart + j) / kWideLanes % kVectors];
        part = part + load_of<Wide>(at + j);
      }
    }
  }
  float total = 0;
  for (const Wide& s : sums) total += sum(s);
  return total == 0 ? 0 : 1;
}

float multiply(std::int64_t loops) {
  Wide chains[kMultiplyChains];
  for (int j = 0; j < kMultiplyChains; ++j) chains[j] = splat_of<Wide>(static_cast<float>(j));
  const Wide factor = splat_of<Wide>(0.5f), step = splat_of<Wide>(1.0f);  // all tend to 2
  for (std::int64_t i = 0; i < loops; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kMultiplyChains; ++j) chains[j] = fma(chains[j], factor, step);
  }
  Wide total = zero_of<Wide>();
  for (const Wide& chain : chains) total = total + chain;
  return sum(total);
}

}  // namespace mmengine::cpu::MM_LEVEL
