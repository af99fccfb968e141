// The logits of a row as candidates, each with its place in the order of choice: descending logits,
// ascending ids on ties, NaN never. What choosing (sample.cu) and scoring (logprobs.cu) share; a
// block of kRowThreads threads has a row.
#pragma once

#include <cstdint>

#include "kernels/cuda/common.cuh"

namespace mmengine::cuda {

constexpr int kRowThreads = 512;

// The greater, the earlier; 0 is no candidate. High half: the logit's bits as an unsigned number of
// the same order, -0 as 0. Low half: ~id.
using Place = std::uint64_t;

MM_DEVICE Place place_of(float logit, std::int64_t id) {
  const std::uint32_t bits = bits_of(logit + 0.0f);
  const std::uint32_t ordered = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return Place{ordered} << 32 | static_cast<std::uint32_t>(~id);
}
MM_DEVICE float logit_at(Place place) {
  const auto ordered = static_cast<std::uint32_t>(place >> 32);
  return float_of(ordered >> 31 != 0 ? ordered & 0x7fffffffu : ~ordered);
}
MM_DEVICE std::int32_t id_at(Place place) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(place));
}

struct Candidates {
  const float* logits;
  std::int64_t n;
  bool aligned;
  const std::uint32_t* mask;  // null: all
};

// visit(place, logit) of this thread's share of them.
template <class Visit>
MM_DEVICE void each_candidate(const Candidates& row, const Visit& visit) {
  for (std::int64_t i = 4 * thread_index(); i < row.n; i += 4 * kRowThreads) {
    const std::uint32_t allowed = row.mask == nullptr ? 0xfu : row.mask[i / 32] >> (i % 32) & 0xfu;
    if (allowed == 0) continue;
    const Float4 x = load4(row.logits, i, row.n, row.aligned);
    for (int j = 0; j < 4; ++j) {
      const bool candidate = i + j < row.n && (allowed >> j & 1) != 0 && x.v[j] == x.v[j];
      if (candidate) visit(place_of(x.v[j], i + j), x.v[j]);
    }
  }
}

// The first of this thread's candidates behind `behind`.
MM_DEVICE Place first_behind(const Candidates& row, Place behind) {
  Place first = 0;
  each_candidate(row, [&](Place place, float) {
    if (place < behind && place > first) first = place;
  });
  return first;
}

// The greatest value of a block; all threads call it and get it, with kReduceBytes of shared
// memory.
MM_DEVICE std::uint64_t block_greatest(std::uint64_t value, std::uint64_t* shared) {
  for (int step = 16; step > 0; step /= 2) {
    const std::uint64_t other = shuffle_xor(value, step);
    if (other > value) value = other;
  }
  block_barrier();  // the last use of `shared` is over
  if (lane_index() == 0) shared[warp_index()] = value;
  block_barrier();
  std::uint64_t greatest = shared[0];
  for (int w = 1; w < kRowThreads / 32; ++w) {
    if (shared[w] > greatest) greatest = shared[w];
  }
  return greatest;
}

// The sum of the values of all threads before this one, and that of all.
struct Running {
  std::uint64_t before, total;
};
MM_DEVICE Running block_running(std::uint64_t value, std::uint64_t* shared) {
  std::uint64_t sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const std::uint64_t other = shuffle_up(sum, step);
    if (lane_index() >= step) sum += other;
  }
  block_barrier();
  if (lane_index() == 31) shared[warp_index()] = sum;
  block_barrier();
  Running running{sum - value, 0};
  for (int w = 0; w < kRowThreads / 32; ++w) {
    if (w < warp_index()) running.before += shared[w];
    running.total += shared[w];
  }
  return running;
}

}  // namespace mmengine::cuda
