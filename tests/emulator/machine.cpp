#include "emulator/machine.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace mmengine::emulator {
namespace {

constexpr std::size_t kGuardBytes = 256;
constexpr std::size_t kMostSharedBytes = std::size_t{227} << 10;  // of a block of sm_90
constexpr auto kPoison = std::byte{0xff};                         // NaN in every type

thread_local Thread* running = nullptr;
thread_local std::uint64_t events = 0;
thread_local std::mt19937_64 random_bits;
thread_local std::vector<std::unique_ptr<Thread>> idle_threads;

std::vector<int> order_of(int count) {
  std::vector<int> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  if (options().order == Order::descending) std::reverse(order.begin(), order.end());
  if (options().order >= Order::shuffled) std::shuffle(order.begin(), order.end(), random_bits);
  return order;
}

void give_shared_memory(Block& block, std::size_t bytes) {
  block.memory = std::make_unique<std::byte[]>(bytes + kGuardBytes + 1024);
  void* aligned = block.memory.get();
  std::size_t room = bytes + kGuardBytes + 1024;
  block.shared = static_cast<std::byte*>(std::align(1024, bytes + kGuardBytes, aligned, room));
  std::fill_n(block.shared, bytes + kGuardBytes, kPoison);
}

void check_guard(const Block& block) {
  const std::byte* end = block.shared + block.launch->shared_bytes;
  const auto written = std::find_if(end, end + kGuardBytes, [](auto b) { return b != kPoison; });
  MM_CHECK(written == end + kGuardBytes, block.launch->name, "emulator: a write ", written - end,
           " bytes past the end of shared memory");
}

std::unique_ptr<Block> make_block(const cuda::Launch& launch, const std::function<void()>& body,
                                  int index) {
  auto block = std::make_unique<Block>();
  block->launch = &launch;
  block->x = index % launch.grid.x;
  block->y = index / launch.grid.x % launch.grid.y;
  block->z = index / launch.grid.x / launch.grid.y;
  give_shared_memory(*block, launch.shared_bytes);
  block->body = body;
  block->warps = std::vector<Warp>(static_cast<std::size_t>(launch.threads / Warp::kLanes));
  for (int t = 0; t < launch.threads; ++t) {
    if (idle_threads.empty()) idle_threads.push_back(std::make_unique<Thread>());
    block->threads.push_back(std::move(idle_threads.back()));
    idle_threads.pop_back();
    Thread& thread = *block->threads.back();
    thread.block = block.get();
    thread.index = t;
    thread.fiber.start(block->body);
  }
  block->live = launch.threads;
  return block;
}

void end_thread(Thread& thread) {
  for (auto& group : thread.copy_groups) {
    for (const Copy& copy : group) copy.arrive();
  }
  for (const Copy& copy : thread.open_copies) copy.arrive();
  thread.copy_groups.clear();
  thread.open_copies.clear();
  --thread.block->live;
  ++events;
}

void run_thread(Thread& thread) {
  if (thread.fiber.finished()) return;
  running = &thread;
  thread.fiber.resume();
  running = nullptr;
  if (thread.fiber.finished()) end_thread(thread);
}

// Until nothing in it moves.
void run_warp(Block& block, int warp) {
  std::uint64_t before = 0;
  do {
    before = events;
    for (const int lane : order_of(Warp::kLanes)) {
      run_thread(*block.threads[static_cast<std::size_t>(warp * Warp::kLanes + lane)]);
    }
  } while (events != before);
}

// Until the block has ended or nothing in it moves.
void run_block(Block& block) {
  std::uint64_t before = 0;
  do {
    before = events;
    if (options().order == Order::warps) {
      for (const int w : order_of(block.launch->threads / Warp::kLanes)) run_warp(block, w);
    } else {
      for (const int t : order_of(block.launch->threads)) {
        run_thread(*block.threads[static_cast<std::size_t>(t)]);
      }
    }
  } while (block.live > 0 && events != before);
}

[[noreturn]] void fail_stuck(const Block& block) {
  for (const auto& thread : block.threads) {
    if (thread->fiber.finished()) continue;
    fail(ErrorCode::engine_dead, block.launch->name, "emulator: a wait without end: block ",
         block.x, ", ", block.y, ", ", block.z, ", thread ", thread->index, " at ",
         thread->waits_for, "; ", block.live, " of ", block.launch->threads, " threads wait");
  }
  fail(ErrorCode::engine_dead, block.launch->name, "emulator: a stuck block without threads");
}

bool waits_for_flag(const Block& block) {
  return std::any_of(block.threads.begin(), block.threads.end(),
                     [](const auto& thread) { return thread->waits_for_flag; });
}

void end_block(Block& block) {
  check_guard(block);
  for (auto& thread : block.threads) idle_threads.push_back(std::move(thread));
}

void check_launch(const cuda::Launch& launch) {
  const cuda::Grid& grid = launch.grid;
  MM_CHECK(launch.threads > 0 && launch.threads <= 1024 && launch.threads % Warp::kLanes == 0,
           launch.name, "emulator: threads: expected whole warps, 32 to 1024, got ",
           launch.threads);
  MM_CHECK(grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y < 65536 && grid.z < 65536, launch.name,
           "emulator: grid: expected 1 block or more, got ", grid.x, ", ", grid.y, ", ", grid.z);
  MM_CHECK(launch.shared_bytes <= kMostSharedBytes, launch.name,
           "emulator: shared_bytes: expected at most ", kMostSharedBytes, ", got ",
           launch.shared_bytes);
  MM_CHECK(!grid.together || std::int64_t{grid.x} * grid.y * grid.z <= options().multiprocessors,
           launch.name, "emulator: grid: expected at most ", options().multiprocessors,
           " blocks together, got ", std::int64_t{grid.x} * grid.y * grid.z);
}

void run_blocks(const cuda::Launch& launch, const std::function<void()>& body) {
  const std::vector<int> order = order_of(launch.grid.x * launch.grid.y * launch.grid.z);
  std::deque<std::unique_ptr<Block>> waiting;
  std::size_t next = 0;
  while (next < order.size() || !waiting.empty()) {
    const std::uint64_t before = events;
    for (std::size_t i = waiting.size(); i > 0; --i) {
      Block& block = *waiting.front();
      run_block(block);
      if (block.live > 0) {
        if (!waits_for_flag(block)) fail_stuck(block);
        waiting.push_back(std::move(waiting.front()));
      } else {
        end_block(block);
      }
      waiting.pop_front();
    }
    if (next < order.size()) {
      waiting.push_back(make_block(launch, body, order[next++]));
      ++events;
    }
    for (const auto& block : waiting) {
      if (events == before) fail_stuck(*block);
    }
  }
}

}  // namespace

Options& options() {
  thread_local Options chosen;
  return chosen;
}

Thread& current() {
  MM_CHECK(running != nullptr, "emulator", "a device function was called outside a kernel");
  return *running;
}

bool arrives_early() {
  return options().order == Order::descending || options().order == Order::warps ||
         (options().order == Order::shuffled && random_bits() % 2 == 0);
}

void note_event() { ++events; }

void Copy::arrive() const {
  if (bytes > 0) std::memcpy(target, source, bytes);
  std::memset(static_cast<std::byte*>(target) + bytes, 0, zeros);
}

void Mbarrier::end_phase_if_done() {
  if (pending > 0 || bytes != 0) return;
  pending = arrivals;
  ++phase;
  note_event();
}

void Block::check_shared(const char* function, const void* p, std::size_t bytes,
                         std::size_t alignment) const {
  const auto* place = static_cast<const std::byte*>(p);
  MM_CHECK(place >= shared && place + bytes <= shared + launch->shared_bytes, launch->name,
           "emulator: ", function, ": expected shared memory of the block, got another address");
  MM_CHECK(reinterpret_cast<std::uintptr_t>(p) % alignment == 0, launch->name,
           "emulator: ", function, ": expected an address that is a multiple of ", alignment);
}

Mbarrier& Block::mbarrier(const char* function, const std::uint64_t* bar) {
  const auto found = mbarriers.find(bar);
  MM_CHECK(found != mbarriers.end(), launch->name, "emulator: ", function,
           ": expected an mbarrier that mbarrier_init has made");
  return found->second;
}

void meet(NamedBarrier& barrier, int threads, bool stay) {
  const Block& block = *current().block;
  MM_CHECK(barrier.arrived == 0 || barrier.threads == threads, block.launch->name,
           "emulator: barrier: expected ", barrier.threads, " threads as others said, got ",
           threads);
  barrier.threads = threads;
  const std::uint64_t phase = barrier.phase;
  note_event();
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.phase;
    return;
  }
  if (stay) wait("a barrier", [&] { return barrier.phase != phase; });
}

void run_grid(const cuda::Launch& launch, const std::function<void()>& body) {
  check_launch(launch);
  MM_CHECK(running == nullptr, launch.name, "emulator: a launch within a kernel");
  random_bits.seed(options().seed);
  try {
    run_blocks(launch, body);
  } catch (...) {
    running = nullptr;  // fibers that did not end are gone with their blocks
    throw;
  }
}

}  // namespace mmengine::emulator
