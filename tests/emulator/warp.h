// Instructions of whole warps, and copies that arrive later: what device_emulated.h is made of.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator/machine.h"

namespace mmengine::emulator {

// All lanes of the current thread's warp meet; the last to come calls compute(warp) once.
template <class Compute>
void meet_warp(const char* instruction, const Compute& compute) {
  Thread& thread = current();
  Warp& warp = thread.block->warps[static_cast<std::size_t>(thread.index / Warp::kLanes)];
  MM_CHECK(warp.arrived == 0 || std::strcmp(warp.instruction, instruction) == 0,
           thread.block->launch->name, "emulator: lanes of warp ", thread.index / Warp::kLanes,
           " at different instructions, ", warp.instruction, " and ", instruction);
  warp.instruction = instruction;
  note_event();
  if (++warp.arrived == Warp::kLanes) {
    compute(warp);
    warp.arrived = 0;
    ++warp.phase;
    return;
  }
  const std::uint64_t phase = warp.phase;
  wait(instruction, [&] { return warp.phase != phase; });
}

inline Warp& current_warp() {
  Thread& thread = current();
  return thread.block->warps[static_cast<std::size_t>(thread.index / Warp::kLanes)];
}

// What a lane reads stays until all lanes have met again.
template <class T>
T exchange(const char* instruction, T value, int from) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  Warp& warp = current_warp();
  std::memcpy(warp.in[current().index % Warp::kLanes], &value, sizeof value);
  meet_warp(instruction, [](Warp& w) {
    for (int lane = 0; lane < Warp::kLanes; ++lane) std::memcpy(w.out[lane], w.in[lane], 8);
  });
  std::memcpy(&value, warp.out[from], sizeof value);
  return value;
}

std::uint32_t ballot(bool p);
void warp_barrier();
NamedBarrier& named(int id, int threads);

void mma(const char* instruction, float (&d)[4], const std::uint32_t (&a)[4],
         const std::uint32_t (&b)[2], float (*widen)(std::uint16_t));
void load_matrix(const char* instruction, std::uint32_t* r, int matrices, const void* row,
                 bool transposed);

void copy_async(void* shared, const void* global, std::size_t bytes, bool valid);
void copy_async_commit();
void copy_async_wait(int pending);

void mbarrier_init(std::uint64_t* bar, int arrivals);
void mbarrier_arrive(std::uint64_t* bar, std::uint32_t bytes);
void mbarrier_wait(std::uint64_t* bar, std::uint32_t parity);
void copy_bulk(void* shared, const void* global, std::uint32_t bytes, std::uint64_t* bar);

}  // namespace mmengine::emulator
