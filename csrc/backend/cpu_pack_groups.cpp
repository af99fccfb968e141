#include "backend/cpu_pack_groups.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/layout.h"

namespace mmengine {
namespace {

using cpu::kBlockRows;
constexpr std::int64_t kFours = kGroup / 4;

// 32 rows in groups: [row][group].
struct Rows {
  std::int64_t groups;
  std::vector<std::uint8_t> codes;
  std::vector<std::uint16_t> scales, minima;

  explicit Rows(const WeightSpec& spec)
      : groups(num_groups(spec.k)),
        codes(static_cast<std::size_t>(kBlockRows * groups * kGroup)),
        scales(static_cast<std::size_t>(kBlockRows * groups)),
        minima(spec.format == WeightFormat::int4 ? scales.size() : 0) {}
  GroupCodes row(std::int64_t lane) {
    return {codes.data() + lane * groups * kGroup, scales.data() + lane * groups,
            minima.empty() ? nullptr : minima.data() + lane * groups};
  }
  void clear(std::int64_t lane) {
    const GroupCodes r = row(lane);
    std::fill_n(r.codes, groups * kGroup, std::uint8_t{0});
    std::fill_n(r.scales, groups, std::uint16_t{0});
    if (r.minima != nullptr) std::fill_n(r.minima, groups, std::uint16_t{0});
  }
  std::uint32_t four(std::int64_t lane, std::int64_t group, std::int64_t index) const {
    std::uint32_t word;
    std::memcpy(&word, codes.data() + (lane * groups + group) * kGroup + 4 * index, sizeof(word));
    return word;
  }
};

void pack_block(const Rows& rows, WeightFormat format, std::byte* block) {
  const bool int4 = format == WeightFormat::int4;
  for (std::int64_t group = 0; group < rows.groups; ++group) {
    std::byte* out = block + group * cpu::group_bytes(format);
    const auto put = [&out](auto value) {
      std::memcpy(out, &value, sizeof(value));
      out += sizeof(value);
    };
    for (std::int64_t i = 0; i < kFours; ++i) {
      if (int4) {
        for (std::int64_t lane = 0; lane < kBlockRows / 2; ++lane) {
          put(rows.four(lane, group, i) | rows.four(lane + kBlockRows / 2, group, i) << 4);
        }
      } else {  // code + 128
        for (std::int64_t lane = 0; lane < kBlockRows; ++lane) {
          put(rows.four(lane, group, i) ^ 0x80808080u);
        }
      }
    }
    const auto put_all = [&](const std::vector<std::uint16_t>& values) {
      for (std::int64_t lane = 0; lane < kBlockRows; ++lane) {
        put(values[static_cast<std::size_t>(lane * rows.groups + group)]);
      }
    };
    put_all(rows.scales);
    if (int4) put_all(rows.minima);
  }
}

}  // namespace

void cpu_pack_groups(const HostWeight& host, const RowReader& reader, const WeightSpec& spec,
                     TensorView target, ThreadPool& pool) {
  pool.parallel_for(
      cpu::packed_rows(spec) / kBlockRows, [&](std::int64_t begin, std::int64_t end, int) {
        std::vector<float> buffer;
        Rows rows(spec);
        for (std::int64_t b = begin; b < end; ++b) {
          std::size_t read = 0;
          for (std::int64_t lane = 0; lane < kBlockRows; ++lane) {
            const std::int64_t source = cpu::source_row(spec, b, lane);
            if (source < 0) {
              rows.clear(lane);
              continue;
            }
            reader.read_groups(source, rows.row(lane), buffer);
            read += reader.stored_row_bytes(source);
          }
          pack_block(rows, spec.format, target.as<std::byte>() + b * cpu::block_bytes(spec));
          if (host.on_read) host.on_read(read);
        }
      });
}

void cpu_gather_groups(const Weight& table, std::int64_t row, float* out) {
  const WeightSpec& spec = table.spec;
  const bool int4 = spec.format == WeightFormat::int4;
  const std::int64_t lane = row % kBlockRows, half = kBlockRows / 2;
  const auto* block =
      static_cast<const std::uint8_t*>(table.data) + row / kBlockRows * cpu::block_bytes(spec);
  for (std::int64_t k = 0; k < spec.k; ++k) {
    const std::uint8_t* group = block + k / kGroup * cpu::group_bytes(spec.format);
    const auto half_at = [&](std::int64_t index) {
      std::uint16_t bits;
      std::memcpy(&bits, group + cpu::group_code_bytes(spec.format) + 2 * index, sizeof(bits));
      return f16_to_f32(bits);
    };
    const std::uint8_t* four =
        group + k % kGroup / 4 * (cpu::group_code_bytes(spec.format) / kFours);
    if (int4) {
      const int pair = four[lane % half * 4 + k % 4];
      const int code = lane < half ? pair & 0xf : pair >> 4;
      out[k] = half_at(lane) * static_cast<float>(code) + half_at(kBlockRows + lane);
    } else {
      out[k] = half_at(lane) * static_cast<float>(four[lane * 4 + k % 4] - 128);
    }
  }
}

}  // namespace mmengine
