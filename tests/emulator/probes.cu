// Kernels that show what the functions of device.cuh do, right ones and wrong ones: the emulator
// must give what PTX documents and notice the wrong ones. Compiled for a device, too.
#include "emulator/probes.h"
#include "kernels/cuda/device.cuh"

namespace mmengine::probes {
namespace {

using namespace mmengine::cuda;

MM_KERNEL(32)
void mma_kernel(const std::uint32_t* a, const std::uint32_t* b, float* d, bool bf16) {
  const int lane = lane_index();
  std::uint32_t ra[4], rb[2];
  float rd[4];
  for (int i = 0; i < 4; ++i) ra[i] = a[4 * lane + i];
  for (int i = 0; i < 2; ++i) rb[i] = b[2 * lane + i];
  for (int i = 0; i < 4; ++i) rd[i] = d[4 * lane + i];
  if (bf16) {
    mma_bf16(rd, ra, rb);
  } else {
    mma_f16(rd, ra, rb);
  }
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = rd[i];
}

// 32 rows of 8 halves; lane l asks for row[l].
template <int kMatrices, bool kTransposed>
MM_KERNEL(32)
void load_matrix_kernel(const std::uint16_t* data, const int* row, std::uint32_t* out) {
  auto* shared = shared_memory<std::uint16_t>();
  const int lane = lane_index();
  for (int i = 0; i < 8; ++i) shared[8 * lane + i] = data[8 * lane + i];
  warp_barrier();
  std::uint32_t r[kMatrices];
  const std::uint16_t* address = shared + 8 * row[lane];
  if constexpr (kMatrices == 1) {
    kTransposed ? load_matrix_x1_transposed(r, address) : load_matrix_x1(r, address);
  } else if constexpr (kMatrices == 2) {
    kTransposed ? load_matrix_x2_transposed(r, address) : load_matrix_x2(r, address);
  } else {
    kTransposed ? load_matrix_x4_transposed(r, address) : load_matrix_x4(r, address);
  }
  for (int i = 0; i < kMatrices; ++i) out[kMatrices * lane + i] = r[i];
}

MM_KERNEL(64)
void shuffle_kernel(const float* x, float* out) {
  const int t = thread_index();
  out[t] = shuffle(x[t], 5);
  out[64 + t] = shuffle_xor(x[t], 3);
  out[128 + t] = shuffle_down(x[t], 4);
  out[192 + t] = shuffle_up(x[t], 4);
  out[256 + t] = static_cast<float>(ballot(x[t] > 0) >> 8);
  out[320 + t] = static_cast<float>(any(x[t] > 2)) + 2 * static_cast<float>(all(x[t] > -2));
  out[384 + t] = static_cast<float>(shuffle_xor(static_cast<double>(x[t]) / 3, 16));
}

// out = x reversed within its block, through shared memory.
template <bool kBarrier>
MM_KERNEL(128)
void reverse_kernel(const float* x, float* out) {
  auto* shared = shared_memory<float>();
  const int t = thread_index(), begin = block_x() * block_threads();
  shared[t] = x[begin + t];
  if (kBarrier) block_barrier();
  out[begin + t] = shared[block_threads() - 1 - t];
}

// The same with copies that arrive later: the last of two groups is waited for, or is not.
template <bool kWait>
MM_KERNEL(128)
void copy_async_kernel(const float* x, float* out, int valid) {
  auto* shared = shared_memory<float>();
  const int t = thread_index(), n = block_threads();
  copy_async<4>(shared + t, x + t, t < valid);
  copy_async_commit();
  copy_async<4>(shared + n + t, x + n + t);
  copy_async_commit();
  copy_async_wait<kWait ? 0 : 1>();
  block_barrier();
  out[t] = shared[n - 1 - t];
  out[n + t] = shared[2 * n - 1 - t];
}

// Rows of 32 floats go through a ring of two places: warp 0 asks for them, warp 1 reads them.
template <bool kWaitFull, bool kWaitEmpty>
MM_KERNEL(64)
void copy_bulk_kernel(const float* x, float* out, int rows) {
  constexpr int kStages = 2;
  auto* stage = shared_memory<float>();
  auto* full = reinterpret_cast<std::uint64_t*>(stage + kStages * 32);
  std::uint64_t* empty = full + kStages;
  if (thread_index() == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 32);
    }
    mbarrier_init_fence();
  }
  block_barrier();
  for (int row = 0; row < rows; ++row) {
    const int i = row % kStages;
    const auto round = static_cast<std::uint32_t>(row / kStages);
    if (warp_index() == 0) {
      if (lane_index() == 0) {
        if (kWaitEmpty && round > 0) mbarrier_wait(empty + i, (round - 1) & 1);
        mbarrier_expect(full + i, 128);
        copy_bulk(stage + 32 * i, x + 32 * row, 128, full + i);
      }
    } else {
      if (kWaitFull) mbarrier_wait(full + i, round & 1);
      out[32 * row + lane_index()] = stage[32 * i + lane_index()];
      mbarrier_arrive(empty + i);
    }
  }
}

// Block b adds its number to a sum in its turn: 0, 1, 2, ...
MM_KERNEL(32)
void turns_kernel(std::uint32_t* flag, float* sum) {
  const auto turn = static_cast<std::uint32_t>(block_x());
  if (thread_index() == 0) {
    wait_until(flag, turn);
    *sum = *sum * 3 + static_cast<float>(turn);
    store_release(flag, turn + 1);
  }
  warp_barrier();
}

MM_KERNEL(96)
void named_barrier_kernel(float* out) {
  auto* shared = shared_memory<float>();
  const int t = thread_index();
  if (warp_index() == 0) {  // warp 0 brings what warps 1 and 2 read
    shared[t] = static_cast<float>(t) + 1;
    named_arrive(1, 96);
  } else {
    named_barrier(1, 96);
    out[t - 32] = shared[t % 32];
  }
}

MM_KERNEL(64)
void wrong_kernel(int what, float* out) {
  auto* shared = shared_memory<float>();
  const int t = thread_index();
  out[t] = 0;
  if (what == 0 && t < 40) block_barrier();
  if (what == 1 && t == 63) shared[64] = 1;
  if (what == 2) copy_async<16>(shared + 1, out);
  if (what == 3) out[t] = t % 32 < 16 ? shuffle(1.0f, 0) : shuffle_xor(1.0f, 1);
  if (what == 4) copy_async<4>(out, out);
  if (what == 5) mbarrier_arrive(reinterpret_cast<std::uint64_t*>(shared));
  if (what == 6) wait_until(reinterpret_cast<const std::uint32_t*>(out), 1);
}

MM_KERNEL(256)
void conversions_kernel(const float* x, int count, std::uint32_t* out) {
  const int i = block_x() * block_threads() + thread_index();
  if (i >= count) return;
  std::uint32_t* own = out + 8 * i;
  own[0] = narrow_bf16(x[i]);
  own[1] = narrow_f16(x[i]);
  own[2] = narrow_e4m3(x[i]);
  own[3] = narrow_bf16_x2(x[i], 1.0f);
  own[4] = narrow_f16_x2(x[i], 1.0f);
  own[5] = narrow_e4m3_x2(x[i], 1.0f);
  own[6] = widen_e4m3_x2(static_cast<std::uint16_t>(own[5]));
  own[7] = bits_of(widen_bf16(static_cast<std::uint16_t>(own[0])) +
                   widen_f16(static_cast<std::uint16_t>(own[1])) +
                   widen_e4m3(static_cast<std::uint8_t>(own[2])));
}

template <int kMatrices>
void any_load_matrix(bool transposed, const Launch& how, const std::uint16_t* data, const int* row,
                     std::uint32_t* out) {
  if (transposed) {
    launch(load_matrix_kernel<kMatrices, true>, how, data, row, out);
  } else {
    launch(load_matrix_kernel<kMatrices, false>, how, data, row, out);
  }
}

}  // namespace

void run_mma(const std::uint32_t* a, const std::uint32_t* b, float* d, bool bf16) {
  launch(mma_kernel, {"mma", {}, 32}, a, b, d, bf16);
}

void run_load_matrix(int matrices, bool transposed, const std::uint16_t* data, const int* row,
                     std::uint32_t* out) {
  const Launch how{"load_matrix", {}, 32, 512};
  if (matrices == 1) any_load_matrix<1>(transposed, how, data, row, out);
  if (matrices == 2) any_load_matrix<2>(transposed, how, data, row, out);
  if (matrices == 4) any_load_matrix<4>(transposed, how, data, row, out);
}

void run_shuffle(const float* x, float* out) {
  launch(shuffle_kernel, {"shuffle", {}, 64}, x, out);
}

void run_reverse(bool barrier, int blocks, const float* x, float* out, Stream stream) {
  launch(barrier ? reverse_kernel<true> : reverse_kernel<false>,
         {"reverse", {blocks}, 128, 512, stream}, x, out);
}

void run_copy_async(bool wait, const float* x, float* out, int valid) {
  launch(wait ? copy_async_kernel<true> : copy_async_kernel<false>, {"copy_async", {}, 128, 1024},
         x, out, valid);
}

void run_copy_bulk(bool wait_full, bool wait_empty, const float* x, float* out, int rows) {
  const auto kernel = !wait_full    ? copy_bulk_kernel<false, true>
                      : !wait_empty ? copy_bulk_kernel<true, false>
                                    : copy_bulk_kernel<true, true>;
  launch(kernel, {"copy_bulk", {}, 64, 256 + 32}, x, out, rows);
}

void run_turns(int blocks, bool together, std::uint32_t* flag, float* sum) {
  launch(turns_kernel, {"turns", {blocks, 1, 1, together}, 32}, flag, sum);
}

void run_named_barrier(float* out) {
  launch(named_barrier_kernel, {"named_barrier", {}, 96, 128}, out);
}

void run_wrong(int what, int threads, float* out) {
  launch(wrong_kernel, {"wrong", {1, 1, 1, what == 6}, threads, 256}, what, out);
}

void run_conversions(const float* x, int count, std::uint32_t* out) {
  launch(conversions_kernel, {"conversions", {(count + 255) / 256}, 256}, x, count, out);
}

}  // namespace mmengine::probes
