// The emulated device: runs a grid with a fiber per thread. A thread runs until it must wait (a
// barrier, a whole warp, a copy, a flag), then the next one runs; a block runs until it ends or all
// its threads wait for flags of other blocks. What hardware leaves open is chosen by Options:
// the order of threads and blocks, and whether an asynchronous copy arrives at once or only when it
// is waited for. A kernel that is right gives the same bits with all of them.
//
// Errors of a kernel (a wait without end, lanes at different instructions, misaligned or foreign
// shared memory, a write past its end) are Error{engine_dead}.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/check.h"
#include "emulator/fiber.h"
#include "kernels/cuda/launch.h"

namespace mmengine::emulator {

enum class Order : std::uint8_t {
  ascending,   // copies arrive as late as they may
  descending,  // copies arrive at once
  shuffled,    // from a seed: another order at every turn, copies early or late
  warps,       // from a seed: each warp runs as far as it can before the next one; copies at once
};

struct Options {
  Order order = Order::ascending;
  std::uint64_t seed = 0;
  int multiprocessors = 6;  // blocks that run at once
};

Options& options();  // of the launches to come

struct Copy {
  void* target;
  const void* source;
  std::size_t bytes;  // none: zeros
  std::size_t zeros;
  void arrive() const;
};

struct Mbarrier {
  int arrivals = 0, pending = 0;
  std::int64_t bytes = 0;  // that copies still owe
  std::uint32_t phase = 0;
  std::deque<Copy> copies;
  void end_phase_if_done();
};

struct NamedBarrier {
  int threads = 0, arrived = 0;
  std::uint64_t phase = 0;
};

struct Warp {  // all lanes meet at one instruction; the last to come computes for all
  static constexpr int kLanes = 32;
  const char* instruction = nullptr;
  int arrived = 0;
  std::uint64_t phase = 0;
  alignas(16) std::byte in[kLanes][64];
  alignas(16) std::byte out[kLanes][16];
};

struct Block;

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  int index = 0;
  const char* waits_for = nullptr;
  bool waits_for_flag = false;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
};

struct Block {
  int x = 0, y = 0, z = 0;
  const cuda::Launch* launch = nullptr;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  NamedBarrier barriers[16];
  std::unordered_map<const void*, Mbarrier> mbarriers;
  std::unique_ptr<std::byte[]> memory;
  std::byte* shared = nullptr;  // in memory, 1024-byte aligned, poisoned
  int live = 0;
  std::function<void()> body;

  // A place in shared memory of a multiple of `alignment`; else an Error that names the function.
  void check_shared(const char* function, const void* p, std::size_t bytes,
                    std::size_t alignment) const;
  Mbarrier& mbarrier(const char* function, const std::uint64_t* bar);
};

Thread& current();  // the thread that runs; a device function outside a kernel is an Error

// A copy arrives now rather than when it is waited for?
bool arrives_early();

// Something moved: there is no deadlock yet.
void note_event();

// The thread gives way until ready(). `flag`: another block may be what it waits for.
template <class Ready>
void wait(const char* what, const Ready& ready, bool flag = false) {
  if (ready()) return;
  Thread& thread = current();
  note_event();
  thread.waits_for = what;
  thread.waits_for_flag = flag;
  do {
    thread.fiber.give_way();
  } while (!ready());
  thread.waits_for = nullptr;
  thread.waits_for_flag = false;
  note_event();
}

void meet(NamedBarrier& barrier, int threads, bool stay);

// Every thread of the grid runs `body`.
void run_grid(const cuda::Launch& launch, const std::function<void()>& body);

}  // namespace mmengine::emulator
