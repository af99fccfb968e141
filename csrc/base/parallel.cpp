#include "base/parallel.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

#include "base/check.h"

namespace mmengine {
namespace {

// Longer than the pieces of a token that one thread computes alone: waking a processor of a virtual
// machine takes 50 us.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr std::int64_t kChunksPerThread = 16;
constexpr int kMaxThreads = 1024;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Quota over period of one cgroup directory; infinity when unlimited or unreadable.
double cgroup_quota(const std::string& directory) {
  double quota = 0, period = 0;
  std::string word;
  if (std::ifstream v2(directory + "/cpu.max"); v2 >> word >> period) {
    if (word == "max" || period <= 0) return INFINITY;
    return std::strtod(word.c_str(), nullptr) / period;
  }
  std::ifstream v1_quota(directory + "/cpu.cfs_quota_us");
  std::ifstream v1_period(directory + "/cpu.cfs_period_us");
  if (v1_quota >> quota && v1_period >> period && quota > 0 && period > 0) return quota / period;
  return INFINITY;
}

// The least quota on the way from this process's cgroup to the root, in versions 1 and 2.
double process_quota() {
  double least = INFINITY;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && controllers.find("cpu") == std::string::npos) continue;
    const std::string root = controllers.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      least = std::min(least, cgroup_quota(root + path));
      if (path.find('/') == std::string::npos) break;
    }
  }
  return least;
}

}  // namespace

int available_processors() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t* set = CPU_ALLOC(8192);
  const std::size_t bytes = CPU_ALLOC_SIZE(8192);
  if (set != nullptr && sched_getaffinity(0, bytes, set) == 0) count = CPU_COUNT_S(bytes, set);
  CPU_FREE(set);
  const double quota = process_quota();
  if (quota < count) count = static_cast<int>(std::ceil(quota));
  return std::clamp(count, 1, kMaxThreads);
}

ThreadPool::ThreadPool(int threads) {
  const int processors = available_processors();
  if (threads == 0) threads = processors;
  if (threads < 1 || threads > kMaxThreads) {
    fail(ErrorCode::usage, "threads", "expected 0 (all processors) or 1 to ", kMaxThreads, ", got ",
         threads);
  }
  spin_ = threads <= processors;  // else the thread waited for may need this processor
  ranges_ = std::vector<Range>(static_cast<std::size_t>(threads));
  try {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { worker(t); });
  } catch (const std::system_error& error) {
    stop_ = true;
    loop_.fetch_add(1);
    loop_.notify_all();
    for (std::thread& w : workers_) w.join();
    fail(ErrorCode::resource, "threads", "the system refused to start ", threads, " threads (",
         error.what(), "); ask for fewer");
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  loop_.fetch_add(1);
  loop_.notify_all();
  for (std::thread& w : workers_) w.join();
}

void ThreadPool::wait_while(std::atomic<std::uint32_t>& value, std::uint32_t old) const {
  if (spin_) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 16; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() < end);
  }
  value.wait(old, std::memory_order_acquire);
}

std::int64_t ThreadPool::chunks_of(std::int64_t tasks) const {
  return std::min({tasks, kChunksPerThread * threads(), std::int64_t{0xffff}});
}

void ThreadPool::start(std::int64_t tasks, Call call, const void* fn) {
  const std::int64_t num_threads = threads();
  const std::uint32_t loop = loop_.load(std::memory_order_relaxed) + 1;
  // No chunk of the loop before is unfinished, and none can be claimed: nobody reads these.
  tasks_ = tasks;
  chunks_ = chunks_of(tasks);
  call_ = call;
  fn_ = fn;
  error_ = nullptr;
  failed_.store(false, std::memory_order_relaxed);
  unfinished_.store(static_cast<std::uint32_t>(chunks_), std::memory_order_relaxed);
  for (std::int64_t t = 0; t < num_threads; ++t) {
    const auto next = static_cast<std::uint64_t>(chunks_ * t / num_threads);
    const auto end = static_cast<std::uint64_t>(chunks_ * (t + 1) / num_threads);
    ranges_[static_cast<std::size_t>(t)].word.store(
        static_cast<std::uint64_t>(loop) << 32 | next << 16 | end, std::memory_order_release);
  }
  loop_.store(loop, std::memory_order_release);
  loop_.notify_all();
  work(loop, 0);
  for (std::uint32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) {
    wait_while(unfinished_, left);
  }
  if (failed_.load(std::memory_order_relaxed)) std::rethrow_exception(std::exchange(error_, {}));
}

bool ThreadPool::claim(Range& range, std::uint32_t loop, std::int64_t& chunk) {
  std::uint64_t word = range.word.load(std::memory_order_acquire);
  for (;;) {
    const std::uint64_t next = (word >> 16) & 0xffff, end = word & 0xffff;
    if (word >> 32 != loop || next >= end) return false;
    if (range.word.compare_exchange_weak(word, word + 0x10000, std::memory_order_acquire)) {
      chunk = static_cast<std::int64_t>(next);
      return true;
    }
  }
}

void ThreadPool::execute(std::int64_t chunk, int thread) {
  if (!failed_.load(std::memory_order_relaxed)) {
    try {
      call_(fn_, tasks_ * chunk / chunks_, tasks_ * (chunk + 1) / chunks_, thread);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      failed_.store(true, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::work(std::uint32_t loop, int thread) {
  const int count = threads();
  std::uint32_t done = 0;            // told once: every thread writes to that one place
  for (int i = 0; i < count; ++i) {  // its own share, then what is left of the others'
    Range& range = ranges_[static_cast<std::size_t>((thread + i) % count)];
    for (std::int64_t chunk; claim(range, loop, chunk); ++done) execute(chunk, thread);
  }
  if (done > 0 && unfinished_.fetch_sub(done, std::memory_order_acq_rel) == done) {
    unfinished_.notify_one();
  }
}

void ThreadPool::worker(int thread) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_while(loop_, seen);
    seen = loop_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    work(seen, thread);
  }
}

}  // namespace mmengine
