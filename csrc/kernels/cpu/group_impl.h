// Products of rows that are rounded per 32 values with int8 and int4 weights: whole sums inside a
// group, exact, and one f32 multiply-add for each group and part in ascending order (params.h).
#pragma once

#include "kernels/cpu/launch.h"
#include "kernels/cpu/math_impl.h"
#include "kernels/cpu/micro_impl.h"

namespace mmengine::cpu::MM_LEVEL {

void round_groups(const float* x, std::int64_t k, const GroupRow& out) {
  for (std::int64_t group = 0; group * kGroup < k; ++group) {
    F8 values[4];
    for (int i = 0; i < 4; ++i) {
      const std::int64_t first = group * kGroup + 8 * i;
      values[i] = load_first(x + first, k - first);
    }
    const float largest = magnitude(values);
    const bool finite = largest == largest, zero_codes = !finite || largest < 0x1p-100f;
    const F8 factor = splat(zero_codes ? 0.0f : 127.0f / largest);
    for (F8& v : values) v = zero_codes ? zero() : v * factor;
    const std::int32_t sum = store_codes(out.codes + group * kGroup, values);
    const float scale = zero_codes && finite ? 0.0f : largest / 127.0f;
    out.scales[group] = scale;
    out.sums[group] = scale * static_cast<float>(sum);
    out.starts[group] = -128 * sum;
  }
}

// The codes of four k: 32 rows x 4, as int8 (+ 128) or as pairs of int4 (layout.h).
template <WeightFormat kFormat, int kVectors>
inline void load_codes(const std::uint8_t* four, int column, Bytes* w) {
  constexpr int kHalf = 16 / kWideLanes;
  if constexpr (kFormat == WeightFormat::int8) {
    for (int v = 0; v < kVectors; ++v) w[v] = load_bytes(four + 4 * (column + v * kWideLanes));
  } else {
    for (int v = 0; v < kHalf; ++v) {
      const Bytes pair = load_bytes(four + 4 * kWideLanes * v);
      if constexpr (kVectors > kHalf) {
        w[v] = low_codes(pair);
        w[v + kHalf] = high_codes(pair);
      } else {
        w[v] = column == 0 ? low_codes(pair) : high_codes(pair);
      }
    }
  }
}

// R rows times `kColumns` columns of the block from `column` on.
template <WeightFormat kFormat, int R, int kColumns>
inline void group_rows(const GroupTile& g, int row, int column) {
  using D = Dot<kFormat>;
  constexpr int kVectors = kColumns / kWideLanes;
  constexpr std::int64_t kBytes = group_bytes(kFormat), kCodeBytes = group_code_bytes(kFormat);
  const std::int8_t* codes = g.x.codes + row * g.groups * kGroup;
  const float* scales = g.x.scales + row * g.groups;
  const float* sums = g.x.sums + row * g.groups;
  const std::int32_t* starts = g.x.starts + row * g.groups;
  const auto* p = static_cast<const std::uint8_t*>(g.block);
  Wide total[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[r][v] = zero_of<Wide>();
  }
  for (std::int64_t group = 0; group < g.groups; ++group, p += kBytes, codes += kGroup) {
    if (row == 0 && column == 0) ask_ahead(g.stream, p, kBytes);  // later rows find it in cache
    typename D::Sums dots[R][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        dots[r][v] = D::start(kFormat == WeightFormat::int8 ? starts[r * g.groups + group] : 0);
      }
    }
#pragma GCC unroll 8
    for (int four = 0; four < kGroup / 4; ++four) {
      Bytes w[kVectors];
      load_codes<kFormat, kVectors>(p + four * (kCodeBytes / 8), column, w);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Bytes x = splat_bytes(codes + r * g.groups * kGroup + 4 * four);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) dots[r][v] = D::add(dots[r][v], w[v], x);
      }
    }
    const auto* halves = reinterpret_cast<const std::uint16_t*>(p + kCodeBytes) + column;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Wide scale = load_halves(halves + v * kWideLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Wide factor = scale * splat_of<Wide>(scales[r * g.groups + group]);
        total[r][v] = fma(D::finish(dots[r][v]), factor, total[r][v]);
      }
      if constexpr (kFormat == WeightFormat::int4) {
        const Wide least = load_halves(halves + kBlockRows + v * kWideLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          total[r][v] = fma(least, splat_of<Wide>(sums[r * g.groups + group]), total[r][v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      store(g.out + (row + r) * kBlockRows + column + v * kWideLanes, total[r][v]);
    }
  }
}

// One row, and as many as the registers hold, take all columns at once; else half of them.
template <WeightFormat kFormat>
inline void all_rows(const GroupTile& g) {
  even_tiles<kGroupRows>(g.rows, [&](int row, auto rows) {
    ask_rows(g.target, row, rows());
    constexpr int kColumns = rows() == 1 || kWideLanes == 16 ? 32 : 16;
    for (int column = 0; column < kBlockRows; column += kColumns) {
      group_rows<kFormat, rows(), kColumns>(g, row, column);
    }
  });
}

void group_tile(const GroupTile& g) {
  if (g.format == WeightFormat::int8) {
    all_rows<WeightFormat::int8>(g);
  } else {
    all_rows<WeightFormat::int4>(g);
  }
}

// Every chain has weights of its own, and x is new in each loop: no product is known before.
float multiply_bytes(std::int64_t loops) {
  using D = Dot<WeightFormat::int4>;
  std::uint8_t codes[kByteChains * sizeof(Bytes)];
  for (std::size_t i = 0; i < sizeof(codes); ++i) codes[i] = static_cast<std::uint8_t>(i % 15);
  const std::int8_t ones[4] = {1, 1, 1, 1};
  Bytes x = splat_bytes(ones);
  typename D::Sums chains[kByteChains];
#pragma GCC unroll 12
  for (int j = 0; j < kByteChains; ++j) chains[j] = D::start(0);
  for (std::int64_t i = 0; i < loops; ++i) {
#pragma GCC unroll 8
    for (int round = 0; round < kByteRounds; ++round) {
      renew(x);
#pragma GCC unroll 12
      for (int j = 0; j < kByteChains; ++j) {
        const std::uint8_t* w = codes + static_cast<std::size_t>(j) * sizeof(Bytes);
        chains[j] = D::add(chains[j], load_bytes(w), x);
      }
    }
  }
  Wide total = zero_of<Wide>();
#pragma GCC unroll 12
  for (int j = 0; j < kByteChains; ++j) total = total + D::finish(chains[j]);
  return sum(total) == 0 ? 1.0f : 2.0f;  // sums of 16 bits come round to 0
}

}  // namespace mmengine::cpu::MM_LEVEL
