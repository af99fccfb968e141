// The functions of kernels/cuda/device.cuh in plain C++ on the emulated device (machine.h), and
// launch. What each means is written in device.cuh. Differences that a test must allow for: sums of
// mma are exact before they are rounded once (a device truncates within), exp2_fast is exp2.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/dtype.h"
#include "emulator/machine.h"
#include "emulator/stream.h"
#include "emulator/warp.h"
#include "kernels/cuda/launch.h"

#define MM_KERNEL(...)
#define MM_DEVICE inline

namespace mmengine::cuda {

// ---- launch --------------------------------------------------------------------------------

// Arguments are copied, as a device would: what they point to must live until the stream has run.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& launch, const Arguments&... arguments) {
  emulator::enqueue(launch.stream, [kernel, launch, ... values = Parameters(arguments)] {
    emulator::run_grid(launch, [&] { kernel(values...); });
  });
}

// ---- ids, shared memory, barriers ----------------------------------------------------------

inline const Launch& current_launch() { return *emulator::current().block->launch; }
inline int thread_index() { return emulator::current().index; }
inline int block_threads() { return current_launch().threads; }
inline int block_x() { return emulator::current().block->x; }
inline int block_y() { return emulator::current().block->y; }
inline int block_z() { return emulator::current().block->z; }
inline int grid_x() { return current_launch().grid.x; }
inline int grid_y() { return current_launch().grid.y; }
inline int grid_z() { return current_launch().grid.z; }
inline int lane_index() { return thread_index() % 32; }
inline int warp_index() { return thread_index() / 32; }

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulator::current().block->shared);
}

inline void block_barrier() {
  emulator::meet(emulator::current().block->barriers[0], block_threads(), true);
}
inline void named_barrier(int id, int threads) {
  emulator::meet(emulator::named(id, threads), threads, true);
}
inline void named_arrive(int id, int threads) {
  emulator::meet(emulator::named(id, threads), threads, false);
}
inline void warp_barrier() { emulator::warp_barrier(); }

// ---- warps ---------------------------------------------------------------------------------

template <class T>
T shuffle(T value, int lane) {
  return emulator::exchange("shuffle", value, lane & 31);
}
template <class T>
T shuffle_xor(T value, int mask) {
  return emulator::exchange("shuffle_xor", value, lane_index() ^ (mask & 31));
}
template <class T>
T shuffle_down(T value, int n) {
  const int from = lane_index() + n;
  return emulator::exchange("shuffle_down", value, from < 32 ? from : lane_index());
}
template <class T>
T shuffle_up(T value, int n) {
  const int from = lane_index() - n;
  return emulator::exchange("shuffle_up", value, from >= 0 ? from : lane_index());
}
inline std::uint32_t ballot(bool p) { return emulator::ballot(p); }
inline bool any(bool p) { return emulator::ballot(p) != 0; }
inline bool all(bool p) { return emulator::ballot(p) == 0xffffffffu; }

// ---- matrices ------------------------------------------------------------------------------

inline void mma_f16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  emulator::mma("mma_f16", d, a, b, f16_to_f32);
}
inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  emulator::mma("mma_bf16", d, a, b, bf16_to_f32);
}

inline void load_matrix_x1(std::uint32_t (&r)[1], const void* row) {
  emulator::load_matrix("load_matrix_x1", r, 1, row, false);
}
inline void load_matrix_x2(std::uint32_t (&r)[2], const void* row) {
  emulator::load_matrix("load_matrix_x2", r, 2, row, false);
}
inline void load_matrix_x4(std::uint32_t (&r)[4], const void* row) {
  emulator::load_matrix("load_matrix_x4", r, 4, row, false);
}
inline void load_matrix_x1_transposed(std::uint32_t (&r)[1], const void* row) {
  emulator::load_matrix("load_matrix_x1_transposed", r, 1, row, true);
}
inline void load_matrix_x2_transposed(std::uint32_t (&r)[2], const void* row) {
  emulator::load_matrix("load_matrix_x2_transposed", r, 2, row, true);
}
inline void load_matrix_x4_transposed(std::uint32_t (&r)[4], const void* row) {
  emulator::load_matrix("load_matrix_x4_transposed", r, 4, row, true);
}

// ---- copies to shared memory ---------------------------------------------------------------

template <int kBytes>
void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::copy_async(shared, global, kBytes, valid);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int kPending>
void copy_async_wait() {
  emulator::copy_async_wait(kPending);
}

inline void mbarrier_init(std::uint64_t* bar, int arrivals) {
  emulator::mbarrier_init(bar, arrivals);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(std::uint64_t* bar) { emulator::mbarrier_arrive(bar, 0); }
inline void mbarrier_expect(std::uint64_t* bar, std::uint32_t bytes) {
  emulator::mbarrier_arrive(bar, bytes);
}
inline void mbarrier_wait(std::uint64_t* bar, std::uint32_t parity) {
  emulator::mbarrier_wait(bar, parity);
}
inline void copy_bulk(void* shared, const void* global, std::uint32_t bytes, std::uint64_t* bar) {
  emulator::copy_bulk(shared, global, bytes, bar);
}
inline void copy_bulk_once(void* shared, const void* global, std::uint32_t bytes,
                           std::uint64_t* bar) {
  emulator::copy_bulk(shared, global, bytes, bar);
}
inline void fence_async() {}
inline void prefetch_l2(const void* global, std::uint32_t bytes) {
  MM_CHECK(reinterpret_cast<std::uintptr_t>(global) % 16 == 0 && bytes % 16 == 0,
           current_launch().name, "emulator: prefetch_l2: expected multiples of 16 bytes");
}

// ---- flags in device memory ----------------------------------------------------------------

inline void store_release(std::uint32_t* p, std::uint32_t value) {
  *p = value;
  emulator::note_event();
}
inline std::uint32_t load_acquire(const std::uint32_t* p) { return *p; }
template <class T>
T atomic_add(T* p, T value) {
  static_assert(std::is_integral_v<T>);
  const T before = *p;
  using Unsigned = std::make_unsigned_t<T>;  // wraps around
  *p = static_cast<T>(static_cast<Unsigned>(before) + static_cast<Unsigned>(value));
  emulator::note_event();
  return before;
}
inline std::uint32_t atomic_add_release(std::uint32_t* p, std::uint32_t value) {
  return atomic_add(p, value);
}
template <class T>
T atomic_max(T* p, T value) {
  const T before = *p;
  if (value > before) *p = value;
  emulator::note_event();
  return before;
}
inline void wait_until(const std::uint32_t* p, std::uint32_t value) {
  MM_CHECK(current_launch().grid.together, current_launch().name,
           "emulator: wait_until: expected a grid whose blocks run together");
  const volatile std::uint32_t* flag = p;
  emulator::wait("wait_until", [&] { return *flag == value; }, true);
}

// ---- numbers -------------------------------------------------------------------------------

inline std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

inline std::uint16_t narrow_bf16(float value) {
  return std::isnan(value) ? std::uint16_t{0x7fff} : f32_to_bf16(value);
}
inline std::uint32_t narrow_bf16_x2(float low, float high) {
  return narrow_bf16(low) | std::uint32_t{narrow_bf16(high)} << 16;
}
inline float widen_bf16(std::uint16_t bits) { return bf16_to_f32(bits); }
inline std::uint16_t narrow_f16(float value) {
  return std::isnan(value) ? std::uint16_t{0x7fff} : f32_to_f16(value);
}
inline std::uint32_t narrow_f16_x2(float low, float high) {
  return narrow_f16(low) | std::uint32_t{narrow_f16(high)} << 16;
}
inline float widen_f16(std::uint16_t bits) { return f16_to_f32(bits); }
inline std::uint8_t narrow_e4m3(float value) {
  return std::isnan(value) ? std::uint8_t{0x7f} : f32_to_e4m3(value);
}
inline std::uint16_t narrow_e4m3_x2(float low, float high) {
  return static_cast<std::uint16_t>(narrow_e4m3(low) | narrow_e4m3(high) << 8);
}
inline float widen_e4m3(std::uint8_t code) { return e4m3_to_f32(code); }
inline std::uint32_t widen_e4m3_x2(std::uint16_t codes) {
  return narrow_f16_x2(widen_e4m3(static_cast<std::uint8_t>(codes & 0xff)),
                       widen_e4m3(static_cast<std::uint8_t>(codes >> 8)));
}

inline float exp2_fast(float x) { return std::exp2(x); }

}  // namespace mmengine::cuda
