// What the device can do, for speeds to be compared with: reading memory, the matrix instruction of
// the products, products of 8-bit integers, each by whole warps with enough of them under way to
// hide latency.
// Limits: 64 registers, no shared memory. Never run on a device.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

namespace mmengine::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChains = 8;
static_assert(kOpsOfInt8Loop == 2 * kChains * kThreads);
constexpr int kMatrixChains = 4;
static_assert(kOpsOfMatrixLoop == kMatrixChains * 2 * 16 * 8 * 16 * (kThreads / 32));

struct alignas(16) Chunk {
  std::uint32_t words[4];
};

// Sums are stored only if they are what they never are, so that reads are not left out.
// budget: read_kernel 40 registers 0 shared; needs none
MM_KERNEL(kThreads)
void read_kernel(const Chunk* data, std::int64_t count, std::uint32_t never, std::uint32_t* out) {
  const std::int64_t step = std::int64_t{grid_x()} * kThreads;
  std::uint32_t sum = 0;
  std::int64_t i = std::int64_t{block_x()} * kThreads + thread_index();
  for (; i + 3 * step < count; i += 4 * step) {
    Chunk chunks[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) chunks[j] = data[i + j * step];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sum += chunks[j].words[0] ^ chunks[j].words[1] ^ chunks[j].words[2] ^ chunks[j].words[3];
    }
  }
  for (; i < count; i += step) sum += data[i].words[0];
  if (sum == never) *out = sum;
}

// budget: multiply_kernel 64 registers 0 shared; needs HMMA
MM_KERNEL(kThreads)
void multiply_kernel(std::int64_t loops, std::uint32_t pair, float* out) {
  const std::uint32_t a[4] = {pair, pair, pair, pair}, b[2] = {pair, pair};
  float chains[kMatrixChains][4] = {};
  for (std::int64_t i = 0; i < loops; ++i) {
#pragma unroll
    for (int j = 0; j < kMatrixChains; ++j) mma_f16(chains[j], a, b);
  }
  float sum = 0;
  for (int j = 0; j < kMatrixChains; ++j) sum += chains[j][0];
  if (sum < 0) *out = sum;
}

// budget: multiply_int8_kernel 32 registers 0 shared; needs none
MM_KERNEL(kThreads)
void multiply_int8_kernel(std::int64_t loops, std::int8_t factor, std::uint32_t* out) {
  std::uint32_t chains[kChains];
  for (int j = 0; j < kChains; ++j) chains[j] = static_cast<std::uint32_t>(thread_index() + j);
  for (std::int64_t i = 0; i < loops; ++i) {
#pragma unroll
    for (int j = 0; j < kChains; ++j) {
      chains[j] += static_cast<std::uint32_t>(static_cast<std::int8_t>(chains[j]) * factor);
    }
  }
  std::uint32_t sum = 0;
  for (int j = 0; j < kChains; ++j) sum += chains[j];
  if (sum == 0x7fffffffu) *out = sum;
}

}  // namespace

void measure_read(const void* data, std::size_t bytes, void* out, int blocks, Stream stream) {
  launch(read_kernel, {"measure_read_bandwidth", {blocks}, kThreads, 0, stream},
         static_cast<const Chunk*>(data), static_cast<std::int64_t>(bytes / sizeof(Chunk)), 1u,
         static_cast<std::uint32_t*>(out));
}

void measure_multiply(std::int64_t loops, void* out, int blocks, Stream stream) {
  constexpr std::uint32_t kPair = 0x14001400u;  // two f16 of 2^-10
  launch(multiply_kernel, {"measure_multiply_peak", {blocks}, kThreads, 0, stream}, loops, kPair,
         static_cast<float*>(out));
}

void measure_multiply_int8(std::int64_t loops, void* out, int blocks, Stream stream) {
  launch(multiply_int8_kernel, {"measure_int8_peak", {blocks}, kThreads, 0, stream}, loops,
         std::int8_t{3}, static_cast<std::uint32_t*>(out));
}

}  // namespace mmengine::cuda
