// The functions of device.cuh in PTX for sm_90a, and their host half, launch. Included by
// device.cuh alone; what each means is written there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "mmengine/error.h"

#define MM_KERNEL(...) __global__ __launch_bounds__(__VA_ARGS__)
#define MM_DEVICE __device__ __forceinline__

namespace mmengine::cuda {

// ---- launch --------------------------------------------------------------------------------

inline void check_launch(cudaError_t code, const Launch& launch) {
  if (code == cudaSuccess) return;
  throw Error(ErrorCode::engine_dead, launch.name,
              std::string("the launch was refused: ") + cudaGetErrorString(code));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& launch, const Arguments&... arguments) {
  // More than 48 KiB of shared memory is given only to kernels that say so.
  if (launch.shared_bytes > 48 * 1024) {
    check_launch(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(launch.shared_bytes)),
                 launch);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(launch.grid.x), static_cast<unsigned>(launch.grid.y),
                        static_cast<unsigned>(launch.grid.z));
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = launch.stream;
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  config.attrs = &together;
  config.numAttrs = launch.grid.together ? 1 : 0;
  check_launch(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), launch);
}

// ---- ids, shared memory, barriers ----------------------------------------------------------

MM_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MM_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
MM_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
MM_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
MM_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
MM_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
MM_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
MM_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }
MM_DEVICE int lane_index() { return thread_index() % 32; }
MM_DEVICE int warp_index() { return thread_index() / 32; }

extern __shared__ __align__(1024) unsigned char mm_shared_memory[];

template <class T>
MM_DEVICE T* shared_memory() {
  return reinterpret_cast<T*>(mm_shared_memory);
}

MM_DEVICE unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

MM_DEVICE void block_barrier() { __syncthreads(); }
MM_DEVICE void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
MM_DEVICE void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
MM_DEVICE void warp_barrier() { __syncwarp(); }

// ---- warps ---------------------------------------------------------------------------------

constexpr unsigned kWholeWarp = 0xffffffffu;

template <class T>
MM_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(kWholeWarp, value, lane);
}
template <class T>
MM_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kWholeWarp, value, mask);
}
template <class T>
MM_DEVICE T shuffle_down(T value, int n) {
  return __shfl_down_sync(kWholeWarp, value, static_cast<unsigned>(n));
}
template <class T>
MM_DEVICE T shuffle_up(T value, int n) {
  return __shfl_up_sync(kWholeWarp, value, static_cast<unsigned>(n));
}
MM_DEVICE std::uint32_t ballot(bool p) { return __ballot_sync(kWholeWarp, p); }
MM_DEVICE bool any(bool p) { return __any_sync(kWholeWarp, p) != 0; }
MM_DEVICE bool all(bool p) { return __all_sync(kWholeWarp, p) != 0; }

// ---- matrices ------------------------------------------------------------------------------

MM_DEVICE void mma_f16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
MM_DEVICE void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

MM_DEVICE void load_matrix_x1(std::uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
MM_DEVICE void load_matrix_x2(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
MM_DEVICE void load_matrix_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
MM_DEVICE void load_matrix_x1_transposed(std::uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
MM_DEVICE void load_matrix_x2_transposed(std::uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
MM_DEVICE void load_matrix_x4_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- copies to shared memory ---------------------------------------------------------------

template <int kBytes>
MM_DEVICE void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const int read = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(kBytes), "r"(read)
                 : "memory");
  }
}
MM_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
MM_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

MM_DEVICE void mbarrier_init(std::uint64_t* bar, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals)
               : "memory");
}
MM_DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
MM_DEVICE void mbarrier_arrive(std::uint64_t* bar) {
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(bar))
      : "memory");
}
MM_DEVICE void mbarrier_expect(std::uint64_t* bar, std::uint32_t bytes) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(
                   shared_address(bar)),
               "r"(bytes)
               : "memory");
}
MM_DEVICE void mbarrier_wait(std::uint64_t* bar, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(bar)),
      "r"(parity)
      : "memory");
}
MM_DEVICE void copy_bulk(void* shared, const void* global, std::uint32_t bytes,
                         std::uint64_t* bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(bar))
      : "memory");
}
MM_DEVICE void copy_bulk_once(void* shared, const void* global, std::uint32_t bytes,
                              std::uint64_t* bar) {
  asm volatile(
      "{\n"
      ".reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], %2, [%3], policy;\n"
      "}" ::"r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(bar))
      : "memory");
}
MM_DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
MM_DEVICE void prefetch_l2(const void* global, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(global)),
               "r"(bytes)
               : "memory");
}

// ---- flags in device memory ----------------------------------------------------------------

MM_DEVICE void store_release(std::uint32_t* p, std::uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
}
MM_DEVICE std::uint32_t load_acquire(const std::uint32_t* p) {
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(p))
               : "memory");
  return value;
}
template <class T>
MM_DEVICE T atomic_add(T* p, T value) {
  static_assert(std::is_integral_v<T>);  // sums of floats would depend on the order
  if constexpr (sizeof(T) == 8) {        // two's complement: signed as unsigned
    return static_cast<T>(atomicAdd(reinterpret_cast<unsigned long long*>(p),
                                    static_cast<unsigned long long>(value)));
  } else {
    return atomicAdd(p, value);
  }
}
MM_DEVICE std::uint32_t atomic_add_release(std::uint32_t* p, std::uint32_t value) {
  std::uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(p)), "r"(value)
               : "memory");
  return before;
}
template <class T>
MM_DEVICE T atomic_max(T* p, T value) {
  return atomicMax(p, value);
}
MM_DEVICE void wait_until(const std::uint32_t* p, std::uint32_t value) {
  while (load_acquire(p) != value) __nanosleep(20);
}

// ---- numbers -------------------------------------------------------------------------------

MM_DEVICE std::uint32_t bits_of(float value) { return __float_as_uint(value); }
MM_DEVICE float float_of(std::uint32_t bits) { return __uint_as_float(bits); }

MM_DEVICE std::uint16_t narrow_bf16(float value) {
  std::uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
MM_DEVICE std::uint32_t narrow_bf16_x2(float low, float high) {
  std::uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
MM_DEVICE float widen_bf16(std::uint16_t bits) {
  return float_of(static_cast<std::uint32_t>(bits) << 16);
}
MM_DEVICE std::uint16_t narrow_f16(float value) {
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
MM_DEVICE std::uint32_t narrow_f16_x2(float low, float high) {
  std::uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
MM_DEVICE float widen_f16(std::uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
MM_DEVICE std::uint16_t narrow_e4m3_x2(float low, float high) {
  std::uint16_t bits;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(high), "f"(low));
  return bits;
}
MM_DEVICE std::uint8_t narrow_e4m3(float value) {
  return static_cast<std::uint8_t>(narrow_e4m3_x2(value, 0.0f) & 0xff);
}
MM_DEVICE std::uint32_t widen_e4m3_x2(std::uint16_t codes) {
  std::uint32_t bits;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(bits) : "h"(codes));
  return bits;
}
MM_DEVICE float widen_e4m3(std::uint8_t code) {
  return widen_f16(static_cast<std::uint16_t>(widen_e4m3_x2(code) & 0xffff));
}

MM_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace mmengine::cuda
