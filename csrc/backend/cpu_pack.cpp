#include "backend/cpu_pack.h"

#include <algorithm>
#include <array>
#include <vector>

#include "backend/row_reader.h"
#include "kernels/cpu/layout.h"

namespace mmengine {
namespace {

using cpu::kBlockRows;

// Rows are read one after another and then laid side by side a few columns at a time, so that the
// piece of the block that is written stays in the first-level cache.
constexpr std::int64_t kTileColumns = 64;

template <class T>
void interleave(const std::byte* rows, std::int64_t row_bytes, const WeightSpec& spec,
                std::byte* block) {
  T* out = reinterpret_cast<T*>(block);
  for (std::int64_t begin = 0; begin < spec.k; begin += kTileColumns) {
    const std::int64_t end = std::min(begin + kTileColumns, spec.k);
    for (std::int64_t lane = 0; lane < kBlockRows; ++lane) {
      const T* row = reinterpret_cast<const T*>(rows + lane * row_bytes);
      T* column = out + cpu::weight_slot(spec.format, lane);
#pragma GCC unroll 8
      for (std::int64_t k = begin; k < end; ++k) column[k * kBlockRows] = row[k];
    }
  }
}

void interleave(const std::byte* rows, std::int64_t row_bytes, const WeightSpec& spec,
                std::byte* block) {
  switch (spec.format) {
    case WeightFormat::f32:
      return interleave<float>(rows, row_bytes, spec, block);
    case WeightFormat::bf16:
      return interleave<std::uint16_t>(rows, row_bytes, spec, block);
    case WeightFormat::fp8:
      return interleave<std::uint8_t>(rows, row_bytes, spec, block);
  }
}

}  // namespace

Weight cpu_pack(const HostWeight& host, const WeightSpec& spec, TensorView target,
                ThreadPool& pool) {
  const RowReader reader(host, spec);
  Weight weight = reader.weight();
  weight.data = target.data;
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
      interleave(rows.data(), row_bytes, spec, target.as<std::byte>() + b * cpu::block_bytes(spec));
      if (host.on_read) host.on_read(read);
    }
  };
  pool.parallel_for(cpu::packed_rows(spec) / kBlockRows, pack_blocks);
  return weight;
}

}  // namespace mmengine
