// A fixed pool of threads for loops over independent tasks. Every thread owns a contiguous share of
// the tasks and takes over what others have not begun, so a thread that the system does not run
// delays the loop by the one chunk it holds, not by its share. Waiting spins for microseconds, then
// sleeps. One loop at a time, started by one thread; a loop inside a loop is not allowed.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace mmengine {

// Processors in this process's affinity mask, or its cgroup's quota rounded up if that is less.
int available_processors();

class ThreadPool {
 public:
  explicit ThreadPool(int threads = 0);  // 0 = available_processors(); the caller is one of them
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(ranges_.size()); }

  // Calls fn(begin, end, thread) until [0, tasks) is covered; thread is in [0, threads()) and no
  // two calls at once share it. Returns when all calls have ended; rethrows one exception of
  // theirs, after which some tasks may not have run.
  template <class F>
  void parallel_for(std::int64_t tasks, F&& fn) {
    using Fn = std::remove_reference_t<F>;
    const auto call = [](const void* f, std::int64_t begin, std::int64_t end, int thread) {
      (*static_cast<Fn*>(const_cast<void*>(f)))(begin, end, thread);
    };
    if (tasks <= 0) return;
    if (tasks == 1 || threads() == 1) {
      fn(std::int64_t{0}, tasks, 0);
    } else {
      start(tasks, call, &fn);
    }
  }

  // The first task of `thread`'s share of a loop; behind the last thread's share, `tasks`.
  std::int64_t share(std::int64_t tasks, int thread) const {
    if (thread == threads()) return tasks;
    const std::int64_t chunks = chunks_of(tasks);
    return tasks * (chunks * thread / threads()) / chunks;
  }

  // Calls fn(share) once for every share in [0, threads()), in parallel where threads are free.
  template <class F>
  void run(F&& fn) {
    parallel_for(threads(), [&fn](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t share = begin; share < end; ++share) fn(static_cast<int>(share));
    });
  }

 private:
  using Call = void (*)(const void* fn, std::int64_t begin, std::int64_t end, int thread);
  // Chunks not yet begun of one thread's share, in one word so that a late thread can never take a
  // chunk of a loop it does not know: loop number << 32 | next << 16 | end.
  struct alignas(64) Range {
    std::atomic<std::uint64_t> word{0};
  };

  std::int64_t chunks_of(std::int64_t tasks) const;
  void start(std::int64_t tasks, Call call, const void* fn);
  void work(std::uint32_t loop, int thread);
  bool claim(Range& range, std::uint32_t loop, std::int64_t& chunk);
  void execute(std::int64_t chunk, int thread);
  void worker(int thread);
  void wait_while(std::atomic<std::uint32_t>& value, std::uint32_t old) const;

  std::vector<Range> ranges_;
  bool spin_ = true;
  alignas(64) std::atomic<std::uint32_t> loop_{0};  // number of the current loop
  alignas(64) std::atomic<std::uint32_t> unfinished_{0};
  std::atomic<bool> stop_{false}, failed_{false};
  // Written before the ranges of a loop are published, read after a chunk of it is claimed.
  std::int64_t tasks_ = 0, chunks_ = 0;
  Call call_ = nullptr;
  const void* fn_ = nullptr;
  std::mutex mutex_;  // guards error_
  std::exception_ptr error_;
  std::vector<std::thread> workers_;
};

}  // namespace mmengine
