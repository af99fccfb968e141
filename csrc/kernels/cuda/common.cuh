// What several kernels are made of: sums and maxima of a block, four floats at once where rows
// allow, the gating of SwiGLU, rounding to e4m3, reports of what is wrong.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"

namespace mmengine::cuda {

// ---- blocks --------------------------------------------------------------------------------

// Shared memory that block_sum and block_max use: one value per warp. The order of the sum is fixed
// by the number of threads. All threads call them and get the result.
constexpr std::size_t kReduceBytes = 32 * sizeof(double);

MM_DEVICE double block_sum(double value, double* shared) {
  for (int step = 16; step > 0; step /= 2) value += shuffle_xor(value, step);
  block_barrier();  // the last use of `shared` is over
  if (lane_index() == 0) shared[warp_index()] = value;
  block_barrier();
  double sum = 0;
  for (int w = 0; w < block_threads() / 32; ++w) sum += shared[w];
  return sum;
}

// The largest, of which NaN is none.
MM_DEVICE float block_max(float value, float* shared) {
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, shuffle_xor(value, step));
  block_barrier();
  if (lane_index() == 0) shared[warp_index()] = value;
  block_barrier();
  float largest = shared[0];
  for (int w = 1; w < block_threads() / 32; ++w) largest = fmaxf(largest, shared[w]);
  return largest;
}

// ---- four floats ---------------------------------------------------------------------------

struct alignas(16) Float4 {
  float v[4];
};

// Rows of `stride` floats from `data` on begin at multiples of 16 bytes.
inline bool rows_aligned(const void* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
}

// Elements i .. i + 3 of a row of n; zeros behind its end. `aligned`: the row is, and i % 4 == 0.
MM_DEVICE Float4 load4(const float* row, std::int64_t i, std::int64_t n, bool aligned) {
  if (aligned && i + 4 <= n) return *reinterpret_cast<const Float4*>(row + i);
  Float4 out;
  for (int j = 0; j < 4; ++j) out.v[j] = i + j < n ? row[i + j] : 0.0f;
  return out;
}
MM_DEVICE void store4(float* row, std::int64_t i, std::int64_t n, bool aligned, const Float4& x) {
  if (aligned && i + 4 <= n) {
    *reinterpret_cast<Float4*>(row + i) = x;
    return;
  }
  for (int j = 0; j < 4; ++j) {
    if (i + j < n) row[i + j] = x.v[j];
  }
}

// ---- numbers -------------------------------------------------------------------------------

// e^x within 2 ulp, infinity above 88.72, subnormal results included, NaN to NaN: the polynomial of
// kernels/cpu/math_impl.h, of the same bits.
MM_DEVICE float exp_exact(float x) {
  const float clamped = x != x ? x : fminf(89.0f, fmaxf(-104.0f, x));
  const float t = fmaf(clamped, 0x1.715476p+0f, 0x1.8p23f);  // rounds to an integer in the low bits
  const float n = t - 0x1.8p23f;
  const float r = fmaf(n, 0x1.05c61p-29f, fmaf(n, -0x1.62e43p-1f, clamped));
  float p = 0x1.a1256cp-13f;
  p = fmaf(p, r, 0x1.6d43bp-10f);
  p = fmaf(p, r, 0x1.1110ep-7f);
  p = fmaf(p, r, 0x1.5554e8p-5f);
  p = fmaf(p, r, 0x1.555556p-3f);
  p = fmaf(p, r, 0.5f);
  const float y = fmaf(p * r, r, r) + 1.0f;
  if (y != y) return y;
  const int power = static_cast<int>(bits_of(t)) - static_cast<int>(bits_of(0x1.8p23f));
  const int half = power / 2;  // 2^power alone may be no normal number
  return y * float_of(static_cast<std::uint32_t>(half + 127) << 23) *
         float_of(static_cast<std::uint32_t>(power - half + 127) << 23);
}

MM_DEVICE float silu_mul(float gate, float up) { return gate / (1.0f + exp_exact(-gate)) * up; }

// The e4m3 code of x / scale as the f32 that it stands for.
MM_DEVICE float rounded_e4m3(float x, float scale) { return widen_e4m3(narrow_e4m3(x / scale)); }

// e4m3_scale of base/dtype.h.
MM_DEVICE float own_scale(float largest) {
  const float scale = largest / 448.0f;
  return largest == 0 ? 1.0f : scale < 0x1p-126f ? 0x1p-126f : scale;
}

// ---- faults --------------------------------------------------------------------------------

MM_DEVICE void report(Fault* fault, FaultKind kind, std::int32_t index, std::int32_t a,
                      std::int32_t b, std::int32_t c = 0) {
  if (atomic_add(&fault->count, 1u) != 0) return;
  fault->kind = kind;
  fault->index = index;
  fault->a = a;
  fault->b = b;
  fault->c = c;
}

}  // namespace mmengine::cuda
