// How fast something can be done on this machine: for the probes that speed is compared with.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace mmengine {

// Loops per second of run(loops), the best of several runs of at least 20 ms each.
template <class Run>
double best_rate(Run&& run) {
  constexpr double kLeastSeconds = 0.02;
  constexpr int kRuns = 8;
  const auto seconds = [&](std::int64_t loops) {
    const auto start = std::chrono::steady_clock::now();
    run(loops);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::int64_t loops = 64;
  double taken = seconds(loops);
  for (; taken < kLeastSeconds; taken = seconds(loops)) loops *= 2;
  double best = static_cast<double>(loops) / taken;
  for (int i = 1; i < kRuns; ++i) {
    best = std::max(best, static_cast<double>(loops) / seconds(loops));
  }
  return best;
}

}  // namespace mmengine
