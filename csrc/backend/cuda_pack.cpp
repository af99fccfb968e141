#include "backend/cuda_pack.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "base/check.h"
#include "kernels/cuda/weight_layout.h"

namespace mmengine {
namespace {

constexpr const char* format_name(WeightFormat format) {
  constexpr const char* names[] = {"f32", "bf16", "fp8", "int8", "int4"};
  return names[static_cast<int>(format)];
}

// Before anything is read: RowReader knows formats that have no tiles.
const HostWeight& checked(const HostWeight& host, const WeightSpec& spec) {
  if (!cuda::has_tiles(spec.format)) {
    fail(ErrorCode::unsupported_model, host.parts.empty() ? "pack" : host.parts[0].source.text(),
         "cuda multiplies with weights of bf16 and fp8, got ", format_name(spec.format),
         "; ask for one of them, or for the cpu");
  }
  return host;
}

bool is_infinite(std::uint16_t bits) { return (bits & 0x7fffu) == 0x7f80u; }

// A bf16 row; returns its scale (weight_layout.h).
float move_infinities(std::uint16_t* row, std::int64_t k) {
  if (std::none_of(row, row + k, is_infinite)) return 1.0f;
  const std::uint16_t one = f32_to_bf16(1.0f);
  std::transform(row, row + k, row, [one](std::uint16_t bits) {
    return static_cast<std::uint16_t>(is_infinite(bits) ? one | (bits & 0x8000u) : 0);
  });
  return std::numeric_limits<float>::infinity();
}

}  // namespace

CudaPacker::CudaPacker(const HostWeight& host, const WeightSpec& spec)
    : host_(checked(host, spec)), spec_(spec), reader_(host, spec) {}

std::int64_t CudaPacker::pieces() const { return cuda::n_tiles(spec_); }

std::size_t CudaPacker::piece_bytes() const {
  return static_cast<std::size_t>(cuda::k_tiles(spec_) * cuda::kTileBytes);
}

void CudaPacker::pack(std::int64_t index, std::byte* piece, float* scales) const {
  constexpr std::int64_t kChunk = 16;  // bytes that the swizzle keeps together
  const std::int64_t tiles = cuda::k_tiles(spec_);
  // A row with the zeros behind it up to whole tiles.
  std::vector<std::byte> row(static_cast<std::size_t>(tiles * cuda::kTileRowBytes));
  std::vector<float> buffer;
  std::size_t read = 0;
  for (std::int64_t r = 0; r < cuda::kTileRows; ++r) {
    const std::int64_t source = cuda::source_row(spec_, index * cuda::kTileRows + r);
    float scale = 0;
    if (source >= 0) {
      scale = reader_.read(source, row.data(), buffer);
      read += reader_.stored_row_bytes(source);
      if (host_.allow_nonfinite && spec_.format == WeightFormat::bf16) {
        scale = move_infinities(reinterpret_cast<std::uint16_t*>(row.data()), spec_.k);
      }
    } else {
      std::fill(row.begin(), row.end(), std::byte{0});
    }
    scales[r] = scale;
    for (std::int64_t t = 0; t < tiles; ++t) {
      std::byte* tile = piece + t * cuda::kTileBytes;
      const std::byte* from = row.data() + t * cuda::kTileRowBytes;
      for (std::int64_t byte = 0; byte < cuda::kTileRowBytes; byte += kChunk) {
        std::memcpy(tile + cuda::swizzled(r, byte), from + byte, kChunk);
      }
    }
  }
  if (host_.on_read) host_.on_read(read);
}

Weight cuda_pack(const HostWeight& host, const WeightSpec& spec, TensorView target,
                 ThreadPool& pool) {
  const CudaPacker packer(host, spec);
  Weight weight = packer.weight();
  weight.data = target.data;
  auto* scales = reinterpret_cast<float*>(target.as<std::byte>() + cuda::data_bytes(spec));
  if (spec.format == WeightFormat::fp8) weight.scales = scales;
  pool.parallel_for(packer.pieces(), [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      packer.pack(i, target.as<std::byte>() + i * static_cast<std::int64_t>(packer.piece_bytes()),
                  scales + i * cuda::kTileRows);
    }
  });
  return weight;
}

}  // namespace mmengine
