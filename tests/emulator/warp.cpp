#include "emulator/warp.h"

#include <algorithm>

namespace mmengine::emulator {
namespace {

int lane() { return current().index % Warp::kLanes; }

struct MmaOperands {
  std::uint32_t a[4], b[2];
  float d[4];
};
static_assert(sizeof(MmaOperands) <= sizeof(Warp::in[0]));

std::uint16_t half_of(std::uint32_t pair, int high) {
  return static_cast<std::uint16_t>(pair >> (16 * high));
}

// d[16, 8] of all lanes, whose places PTX gives for mma.m16n8k16.
void compute_mma(Warp& warp, float (*widen)(std::uint16_t)) {
  float a[16][16], b[16][8];
  double d[16][8];
  for (int l = 0; l < Warp::kLanes; ++l) {
    MmaOperands own;
    std::memcpy(&own, warp.in[l], sizeof own);
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < 4; ++r) {
      for (int high = 0; high < 2; ++high) {
        a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + high] = widen(half_of(own.a[r], high));
        if (r < 2) b[2 * t + 8 * r + high][g] = widen(half_of(own.b[r], high));
      }
      d[g + 8 * (r / 2)][2 * t + r % 2] = own.d[r];
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += static_cast<double>(a[m][k]) * b[k][n];
    }
  }
  for (int l = 0; l < Warp::kLanes; ++l) {
    float own[4];
    for (int r = 0; r < 4; ++r) {
      own[r] = static_cast<float>(d[l / 4 + 8 * (r / 2)][2 * (l % 4) + r % 2]);
    }
    std::memcpy(warp.out[l], own, sizeof own);
  }
}

void compute_load_matrix(Warp& warp, int matrices, bool transposed) {
  for (int i = 0; i < matrices; ++i) {
    std::uint16_t matrix[8][8];
    for (int j = 0; j < 8; ++j) {
      const void* row = nullptr;
      std::memcpy(&row, warp.in[8 * i + j], sizeof row);
      std::memcpy(matrix[j], row, sizeof matrix[j]);
    }
    for (int l = 0; l < Warp::kLanes; ++l) {
      const int g = l / 4, t = l % 4;
      const std::uint32_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const std::uint32_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      const std::uint32_t pair = low | high << 16;
      std::memcpy(warp.out[l] + 4 * i, &pair, sizeof pair);
    }
  }
}

}  // namespace

std::uint32_t ballot(bool p) {
  Warp& warp = current_warp();
  warp.in[lane()][0] = std::byte{p};
  meet_warp("a vote", [](Warp& w) {
    std::uint32_t bits = 0;
    for (int l = 0; l < Warp::kLanes; ++l) bits |= std::to_integer<std::uint32_t>(w.in[l][0]) << l;
    for (auto& out : w.out) std::memcpy(out, &bits, sizeof bits);
  });
  std::uint32_t bits = 0;
  std::memcpy(&bits, warp.out[lane()], sizeof bits);
  return bits;
}

void warp_barrier() {
  meet_warp("warp_barrier", [](Warp&) {});
}

NamedBarrier& named(int id, int threads) {
  Block& block = *current().block;
  MM_CHECK(id > 0 && id < 16 && threads > 0 && threads % Warp::kLanes == 0, block.launch->name,
           "emulator: named barrier: expected id 1 to 15 and whole warps, got ", id, " and ",
           threads);
  return block.barriers[id];
}

void mma(const char* instruction, float (&d)[4], const std::uint32_t (&a)[4],
         const std::uint32_t (&b)[2], float (*widen)(std::uint16_t)) {
  Warp& warp = current_warp();
  MmaOperands own;
  std::copy_n(a, 4, own.a);
  std::copy_n(b, 2, own.b);
  std::copy_n(d, 4, own.d);
  std::memcpy(warp.in[lane()], &own, sizeof own);
  meet_warp(instruction, [widen](Warp& w) { compute_mma(w, widen); });
  std::memcpy(d, warp.out[lane()], sizeof d);
}

void load_matrix(const char* instruction, std::uint32_t* r, int matrices, const void* row,
                 bool transposed) {
  Warp& warp = current_warp();
  if (lane() < 8 * matrices) current().block->check_shared(instruction, row, 16, 16);
  std::memcpy(warp.in[lane()], &row, sizeof row);
  meet_warp(instruction, [=](Warp& w) { compute_load_matrix(w, matrices, transposed); });
  std::memcpy(r, warp.out[lane()], 4 * static_cast<std::size_t>(matrices));
}

void copy_async(void* shared, const void* global, std::size_t bytes, bool valid) {
  Thread& thread = current();
  thread.block->check_shared("copy_async", shared, bytes, bytes);
  MM_CHECK(!valid || reinterpret_cast<std::uintptr_t>(global) % bytes == 0,
           thread.block->launch->name, "emulator: copy_async: expected a source at a multiple of ",
           bytes);
  const Copy copy{shared, global, valid ? bytes : 0, valid ? 0 : bytes};
  if (arrives_early()) {
    copy.arrive();
  } else {
    thread.open_copies.push_back(copy);
  }
}

void copy_async_commit() {
  Thread& thread = current();
  thread.copy_groups.push_back(std::move(thread.open_copies));
  thread.open_copies.clear();
}

void copy_async_wait(int pending) {
  Thread& thread = current();
  while (thread.copy_groups.size() > static_cast<std::size_t>(pending)) {
    for (const Copy& copy : thread.copy_groups.front()) copy.arrive();
    thread.copy_groups.pop_front();
  }
}

void mbarrier_init(std::uint64_t* bar, int arrivals) {
  Block& block = *current().block;
  block.check_shared("mbarrier_init", bar, 8, 8);
  MM_CHECK(arrivals > 0, block.launch->name,
           "emulator: mbarrier_init: expected 1 arrival or more, got ", arrivals);
  Mbarrier barrier;
  barrier.arrivals = barrier.pending = arrivals;
  block.mbarriers[bar] = barrier;
}

void mbarrier_arrive(std::uint64_t* bar, std::uint32_t bytes) {
  Block& block = *current().block;
  Mbarrier& barrier = block.mbarrier("mbarrier_arrive", bar);
  MM_CHECK(barrier.pending > 0, block.launch->name,
           "emulator: mbarrier_arrive: more arrivals than the ", barrier.arrivals, " of a phase");
  barrier.bytes += bytes;
  --barrier.pending;
  note_event();
  barrier.end_phase_if_done();
}

// Copies arrive here at the latest, one at each look.
void mbarrier_wait(std::uint64_t* bar, std::uint32_t parity) {
  Mbarrier& barrier = current().block->mbarrier("mbarrier_wait", bar);
  wait("mbarrier_wait", [&barrier, parity] {
    if ((barrier.phase & 1u) != parity) return true;
    if (!barrier.copies.empty()) {
      const Copy copy = barrier.copies.front();
      barrier.copies.pop_front();
      copy.arrive();
      barrier.bytes -= static_cast<std::int64_t>(copy.bytes);
      note_event();
      barrier.end_phase_if_done();
    }
    return (barrier.phase & 1u) != parity;
  });
}

void copy_bulk(void* shared, const void* global, std::uint32_t bytes, std::uint64_t* bar) {
  Block& block = *current().block;
  block.check_shared("copy_bulk", shared, bytes, 16);
  MM_CHECK(bytes % 16 == 0 && reinterpret_cast<std::uintptr_t>(global) % 16 == 0,
           block.launch->name, "emulator: copy_bulk: expected multiples of 16 bytes, got ", bytes,
           " bytes");
  Mbarrier& barrier = block.mbarrier("copy_bulk", bar);
  const Copy copy{shared, global, bytes, 0};
  if (!arrives_early()) {
    barrier.copies.push_back(copy);
    return;
  }
  copy.arrive();
  barrier.bytes -= bytes;
  barrier.end_phase_if_done();
}

}  // namespace mmengine::emulator
