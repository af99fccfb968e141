#include "backend/cpu_pack.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "backend/cpu_pack_groups.h"
#include "backend/row_reader.h"
#include "kernels/cpu/layout.h"

namespace mmengine {
namespace {

using cpu::kBlockRows;

// 32 rows, side by side in the order of the slots; each is a whole number of cache lines long.
struct Rows {
  const std::byte* data;
  std::int64_t row_bytes;
  WeightFormat format;
  template <class T>
  const T* at_slot(std::int64_t slot) const {
    std::int64_t lane = 0;
    while (cpu::weight_slot(format, lane) != slot) ++lane;
    return reinterpret_cast<const T*>(data + lane * row_bytes);
  }
};

// Columns [begin, k) one element after another, a few columns at a time so that the piece of the
// block that is written stays in the first-level cache.
template <class T>
void interleave_from(const Rows& rows, std::int64_t begin, std::int64_t k, T* block) {
  constexpr std::int64_t kColumns = 64;
  for (std::int64_t first = begin; first < k; first += kColumns) {
    const std::int64_t end = std::min(first + kColumns, k);
    for (std::int64_t slot = 0; slot < kBlockRows; ++slot) {
      const T* row = rows.at_slot<T>(slot);
      for (std::int64_t i = first; i < end; ++i) block[i * kBlockRows + slot] = row[i];
    }
  }
}

using Halves = std::uint16_t __attribute__((vector_size(16)));

template <class T>
Halves load(const T* p) {
  Halves v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// Three perfect shuffles of eight vectors of eight exchange rows and columns.
void transpose(std::array<Halves, 8>& v) {
  for (int round = 0; round < 3; ++round) {
    std::array<Halves, 8> next;
    for (std::size_t i = 0; i < 4; ++i) {
      next[2 * i] = __builtin_shufflevector(v[i], v[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    v = next;
  }
}

// Eight columns of sixteen bytes each.
void store(std::array<Halves, 8>& v, std::byte* column, std::int64_t stride) {
  transpose(v);
  for (std::size_t i = 0; i < 8; ++i) {
    std::memcpy(column + static_cast<std::int64_t>(i) * stride, &v[i], sizeof(v[i]));
  }
}

void interleave(const Rows& rows, std::int64_t k, std::uint16_t* block) {
  constexpr std::int64_t kColumns = 8;
  const std::int64_t whole = k / kColumns * kColumns;
  for (std::int64_t slot = 0; slot < kBlockRows; slot += 8) {
    std::array<const std::uint16_t*, 8> row;
    for (std::int64_t i = 0; i < 8; ++i) {
      row[static_cast<std::size_t>(i)] = rows.at_slot<std::uint16_t>(slot + i);
    }
    std::array<Halves, 8> v;
    for (std::int64_t i = 0; i < whole; i += kColumns) {
      for (std::size_t j = 0; j < 8; ++j) v[j] = load(row[j] + i);
      store(v, reinterpret_cast<std::byte*>(block + i * kBlockRows + slot), 2 * kBlockRows);
    }
  }
  interleave_from(rows, whole, k, block);
}

// Two bytes that lie side by side in the block go as one half.
void interleave(const Rows& rows, std::int64_t k, std::uint8_t* block) {
  using Bytes = std::uint8_t __attribute__((vector_size(16)));
  constexpr std::int64_t kColumns = 16;
  const std::int64_t whole = k / kColumns * kColumns;
  for (std::int64_t slot = 0; slot < kBlockRows; slot += 16) {
    std::array<const std::uint8_t*, 16> row;
    for (std::int64_t i = 0; i < 16; ++i) {
      row[static_cast<std::size_t>(i)] = rows.at_slot<std::uint8_t>(slot + i);
    }
    std::array<Halves, 8> low, high;
    for (std::int64_t i = 0; i < whole; i += kColumns) {
      for (std::size_t j = 0; j < 8; ++j) {
        const auto a = reinterpret_cast<Bytes>(load(row[2 * j] + i));
        const auto b = reinterpret_cast<Bytes>(load(row[2 * j + 1] + i));
        low[j] = reinterpret_cast<Halves>(
            __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
        high[j] = reinterpret_cast<Halves>(__builtin_shufflevector(
            a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
      }
      auto* column = reinterpret_cast<std::byte*>(block + i * kBlockRows + slot);
      store(low, column, kBlockRows);
      store(high, column + 8 * kBlockRows, kBlockRows);
    }
  }
  interleave_from(rows, whole, k, block);
}

void interleave(const Rows& rows, std::int64_t k, std::byte* block) {
  switch (rows.format) {
    case WeightFormat::f32:
      return interleave_from(rows, 0, k, reinterpret_cast<float*>(block));
    case WeightFormat::bf16:
      return interleave(rows, k, reinterpret_cast<std::uint16_t*>(block));
    case WeightFormat::fp8:
      return interleave(rows, k, reinterpret_cast<std::uint8_t*>(block));
    case WeightFormat::int8:
    case WeightFormat::int4:
      return;  // cpu_pack_groups
  }
}

}  // namespace

Weight cpu_pack(const HostWeight& host, const WeightSpec& spec, TensorView target,
                ThreadPool& pool) {
  const RowReader reader(host, spec);
  Weight weight = reader.weight();
  weight.data = target.data;
  if (has_groups(spec.format)) {
    cpu_pack_groups(host, reader, spec, target, pool);
    return weight;
  }
  auto* scales = reinterpret_cast<float*>(target.as<std::byte>() + cpu::data_bytes(spec));
  if (spec.format == WeightFormat::fp8) weight.scales = scales;

  const std::int64_t bytes = spec.k * cpu::format_bytes(spec.format);
  // One cache line more than whole lines: rows of a power of two would share their cache sets.
  const std::int64_t row_bytes = cpu::round_up(bytes, 64) + 64;
  const auto pack_blocks = [&](std::int64_t begin, std::int64_t end, int) {
    std::vector<float> buffer;
    std::vector<std::byte> rows(static_cast<std::size_t>(kBlockRows * row_bytes));
    for (std::int64_t b = begin; b < end; ++b) {
      std::size_t read = 0;
      for (std::int64_t lane = 0; lane < kBlockRows; ++lane) {
        const std::int64_t source = cpu::source_row(spec, b, lane);
        std::byte* row = rows.data() + lane * row_bytes;
        float scale = 0;
        if (source >= 0) {
          scale = reader.read(source, row, buffer);
          read += reader.stored_row_bytes(source);
        } else {
          std::fill_n(row, bytes, std::byte{0});
        }
        if (weight.scales != nullptr) scales[b * kBlockRows + lane] = scale * cpu::kScaleFactor;
      }
      interleave({rows.data(), row_bytes, spec.format}, spec.k,
                 target.as<std::byte>() + b * cpu::block_bytes(spec));
      if (host.on_read) host.on_read(read);
    }
  };
  pool.parallel_for(cpu::packed_rows(spec) / kBlockRows, pack_blocks);
  return weight;
}

}  // namespace mmengine
