// Rows of a table in tiles as f32: a block of 128 threads for a row, 16 bytes of it at a time, of
// which eight neighbours stand together in each tile. An id outside the table is reported.
// Limits: 40 registers, no shared memory. Never run on a device.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/weight_layout.h"

namespace mmengine::cuda {
namespace {

constexpr int kThreads = 128;

struct alignas(16) Chunk {
  std::uint32_t words[4];
};

// Four elements of a chunk, numbers 4 i .. 4 i + 3.
MM_DEVICE Float4 widen4(const Chunk& chunk, int i, std::uint16_t) {
  Float4 out;
  for (int j = 0; j < 4; ++j) {
    const std::uint32_t pair = chunk.words[2 * i + j / 2];
    out.v[j] = widen_bf16(static_cast<std::uint16_t>(pair >> (16 * (j % 2))));
  }
  return out;
}
MM_DEVICE Float4 widen4(const Chunk& chunk, int i, std::uint8_t) {
  Float4 out;
  for (int j = 0; j < 4; ++j) {
    out.v[j] = widen_e4m3(static_cast<std::uint8_t>(chunk.words[i] >> (8 * j)));
  }
  return out;
}

// budget: embed_kernel 40 registers 0 shared; needs none
template <class T>
MM_KERNEL(kThreads)
void embed_kernel(WeightSpec spec, const std::byte* data, const float* scales,
                  const std::int32_t* ids, float* out, std::int64_t out_stride, bool aligned,
                  Fault* fault) {
  constexpr int kElements = 16 / sizeof(T);
  const std::int64_t row = block_x(), id = ids[row];
  const bool known = id >= 0 && id < spec.n;
  if (!known && thread_index() == 0) {
    report(fault, FaultKind::id, static_cast<std::int32_t>(row),
           static_cast<std::int32_t>(spec.n - 1), static_cast<std::int32_t>(id));
  }
  const float scale = known ? scales[id] : 0.0f;
  float* to = out + row * out_stride;
  for (std::int64_t k = std::int64_t{thread_index()} * kElements; k < spec.k;
       k += kThreads * kElements) {
    Chunk chunk{};
    if (known) chunk = *reinterpret_cast<const Chunk*>(data + element_offset(spec, id, k));
#pragma unroll
    for (int i = 0; i < kElements / 4; ++i) {
      Float4 x = widen4(chunk, i, T{});
      for (int j = 0; j < 4; ++j) x.v[j] *= scale;
      store4(to, k + 4 * i, spec.k, aligned, x);
    }
  }
}

}  // namespace

void embed(const EmbedParams& p, Fault* fault, Stream stream) {
  if (p.step.rows == 0) return;
  const bool fp8 = p.table.spec.format == WeightFormat::fp8;
  launch(fp8 ? embed_kernel<std::uint8_t> : embed_kernel<std::uint16_t>,
         {"embed", {p.step.rows}, kThreads, 0, stream}, p.table.spec,
         static_cast<const std::byte*>(p.table.data), row_scales(p.table), p.step.ids,
         p.out.as<float>(), p.out.row_stride, rows_aligned(p.out.data, p.out.row_stride), fault);
}

}  // namespace mmengine::cuda
