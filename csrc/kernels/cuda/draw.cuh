// One draw from the candidates of a row by a block, without sorting: they fall into bins by the
// leading bits of their place in the order, and the bin that holds the one sought is split by the
// next bits until it holds one alone.
#pragma once

#include <cstdint>

#include "kernels/cuda/candidates.cuh"
#include "kernels/params.h"

namespace mmengine::cuda {

// Every filter keeps a prefix of one order, so each only says how much mass it keeps, and the draw
// goes by the least of them. Mass is whole numbers, weights of at most 1 in units of 2^-f, f = 62 -
// the bits of n: sums are exact, in whatever order the bins are filled. So a draw differs from that
// of kernels/ref only where u lies so close to a border of the cumulative distribution: 4e-7 of
// the border (three ulp of exp) and n 2^-f (8e-9 at n = 131072). What has no mass is not drawn.
constexpr int kBins = 2048;

struct Bins {
  std::uint64_t mass[kBins];
  std::uint32_t count[kBins];
};

struct Work {
  std::uint64_t reduce[32];
  std::uint64_t before, found;
  int bin;
  Bins all;   // by the first bits, for every search of the row
  Bins part;  // of one bin
};

struct Draw {
  Candidates row;
  float maximum, temperature, unit;
};

MM_DEVICE float weight(const Draw& draw, float logit) {
  return logit == draw.maximum ? 1.0f : exp_exact((logit - draw.maximum) / draw.temperature);
}
MM_DEVICE std::uint64_t mass_of(const Draw& draw, float weight) {
  return static_cast<std::uint64_t>(weight * draw.unit);
}

// Bins of a level are the bits of a place from shift_of(level) up to those of the level before it:
// 11, 11, 10 of the logit, 11, 11, 10 of the id.
constexpr int kLevels = 6;
MM_DEVICE int shift_of(int level) {
  return level < 2 ? 53 - 11 * level : level < 5 ? 32 - 11 * (level - 2) : 0;
}
MM_DEVICE int bins_of(int level) { return level == 2 || level == 5 ? kBins / 2 : kBins; }

// The candidates whose place begins with `prefix`, the bits of the level before.
MM_DEVICE void fill(const Draw& draw, int level, Place prefix, Bins& bins) {
  block_barrier();  // the last use of `bins` is over
  for (int b = thread_index(); b < kBins; b += kRowThreads) {
    bins.mass[b] = 0;
    bins.count[b] = 0;
  }
  block_barrier();
  const int shift = shift_of(level), above = level == 0 ? 0 : shift_of(level - 1);
  const auto last = static_cast<Place>(bins_of(level) - 1);
  each_candidate(draw.row, [&](Place place, float logit) {
    if (level > 0 && place >> above != prefix) return;
    const Place bin = place >> shift & last;
    const std::uint64_t mass = mass_of(draw, weight(draw, logit));
    atomic_add(&bins.count[bin], 1u);
    if (mass != 0) atomic_add(&bins.mass[bin], mass);
  });
  block_barrier();
}

// One candidate, or a bin on the way to it.
struct Found {
  Place prefix = 0;  // its place from shift_of(level) on
  int level = 0;
  std::uint64_t before = 0;  // mass of all candidates before it
  std::uint64_t mass = 0;    // its own
  std::uint32_t count = 0;   // candidates in it
};

// Within `at`: the bin where the running sum, of mass or of candidates, first exceeds `target`,
// from which the sums of the bins before are taken off. There is one.
MM_DEVICE Found pick(const Found& at, int level, const Bins& bins, bool by_count,
                     std::uint64_t& target, Work& work) {
  const int each = bins_of(level) / kRowThreads, first = bins_of(level) - 1 - each * thread_index();
  std::uint64_t own = 0, own_mass = 0;
  for (int b = first; b > first - each; --b) {
    own += by_count ? bins.count[b] : bins.mass[b];
    own_mass += bins.mass[b];
  }
  std::uint64_t before = block_running(own, work.reduce).before;
  std::uint64_t mass = by_count ? block_running(own_mass, work.reduce).before : before;
  if (target >= before && target - before < own) {
    int b = first;
    for (;; --b) {
      const std::uint64_t value = by_count ? bins.count[b] : bins.mass[b];
      if (target - before < value) break;
      before += value;
      mass += bins.mass[b];
    }
    work.bin = b;
    work.before = mass;
    work.found = before;
  }
  block_barrier();
  const int bin = work.bin;
  target -= work.found;
  const int bits = level == 2 || level == 5 ? 10 : 11;
  return {at.prefix << bits | static_cast<Place>(bin), level, at.before + work.before,
          bins.mass[bin], bins.count[bin]};
}

// The candidate where the running sum first exceeds `target`, which is below the whole sum.
MM_DEVICE Found find(const Draw& draw, bool by_count, std::uint64_t target, Work& work) {
  Found at;
  for (int level = 0; level < kLevels && at.count != 1; ++level) {
    const bool same = (level == 3 && draw.row.n <= std::int64_t{1} << 21) ||
                      (level == 4 && draw.row.n <= std::int64_t{1} << 10);
    if (same) {  // these bits of ~id are ones
      at.prefix = at.prefix << 11 | (kBins - 1);
      at.level = level;
      continue;
    }
    if (level > 0) fill(draw, level, at.prefix, work.part);
    at = pick(at, level, level == 0 ? work.all : work.part, by_count, target, work);
  }
  return at;
}

MM_DEVICE std::int32_t id_of(const Draw& draw, const Found& at, Work& work) {
  block_barrier();  // the last use of work.found is over
  each_candidate(draw.row, [&](Place place, float) {
    if (place >> shift_of(at.level) == at.prefix) work.found = place;
  });
  block_barrier();
  return id_at(work.found);
}

MM_DEVICE std::uint64_t finalise(std::uint64_t z) {  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
MM_DEVICE double uniform_of(std::uint64_t seed, std::int64_t position) {
  constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15u;
  const std::uint64_t first = finalise(seed + kStep);
  const std::uint64_t h = finalise(first + (static_cast<std::uint64_t>(position) + 1) * kStep);
  return static_cast<double>(h >> 11) * 0x1p-53;
}

// The mass of the candidates that min_p leaves.
MM_DEVICE std::uint64_t likely_mass(const Draw& draw, float min_p, Work& work) {
  std::uint64_t mass = 0;
  each_candidate(draw.row, [&](Place, float logit) {
    const float w = weight(draw, logit);
    if (w >= min_p) mass += mass_of(draw, w);
  });
  return block_running(mass, work.reduce).total;
}

MM_DEVICE std::int32_t draw_id(const Draw& draw, const SampleRow& row, double u, Work& work) {
  fill(draw, 0, 0, work.all);
  std::uint64_t total = 0, count = 0;
  for (int b = thread_index(); b < kBins; b += kRowThreads) {
    total += work.all.mass[b];
    count += work.all.count[b];
  }
  total = block_running(total, work.reduce).total;  // that top_k leaves
  count = block_running(count, work.reduce).total;
  std::uint64_t kept = total;  // that all filters leave

  // One search for each of them and one for the draw, in a loop for the sake of the code's size.
  enum { kTopK, kTopP, kChoice };
  Found last;
  for (int sought = kTopK; sought <= kChoice; ++sought) {
    std::uint64_t target = 0;
    if (sought == kTopK) {
      if (row.top_k == 0 || static_cast<std::uint64_t>(row.top_k) >= count) continue;
      target = static_cast<std::uint64_t>(row.top_k) - 1;
    } else if (sought == kTopP) {
      if (row.min_p > 0) {
        const std::uint64_t likely = likely_mass(draw, row.min_p, work);
        if (likely < kept) kept = likely;
      }
      if (row.top_p >= 1) continue;
      // The shortest prefix of at least this mass; the first candidate has some.
      target = static_cast<std::uint64_t>(ceil(row.top_p * static_cast<double>(total)));
      if (target > 0) --target;
      if (target >= kept) continue;
    } else {
      target = static_cast<std::uint64_t>(u * static_cast<double>(kept));
      if (target >= kept) target = kept - 1;  // the product was rounded up
    }
    last = find(draw, sought == kTopK, target, work);
    const std::uint64_t prefix = last.before + last.mass;
    if (sought == kTopK) total = prefix;
    if (prefix < kept) kept = prefix;
  }
  return id_of(draw, last, work);
}

}  // namespace mmengine::cuda
