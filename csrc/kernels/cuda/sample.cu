// Choosing ids as kernels/ref/sample.cpp does it: a block for a row. Bias, penalties and bans are
// written over the row's logits and taken back at the end. A greedy row reads its logits once. A
// draw does not sort: the candidates fall into bins by the leading bits of their place in the
// order, and the bin that holds the one sought is split by the next bits until it holds one alone.
// Limits: 64 registers, 48 KiB + 320 bytes of shared memory. Never run on a device.
#include "kernels/cuda/candidates.cuh"
#include "kernels/cuda/launch.h"

namespace mmengine::cuda {
namespace {

constexpr int kBins = 2048;

struct Sampling {
  float* logits;
  std::int64_t stride, n;
  bool aligned;
  float unit;  // of mass: 2^f
  SampleInput in;
  ChangedLogits changed;
  const std::int32_t *positions, *logits_row;
  std::int32_t* id;
};

// ---- bias, penalties, bans -----------------------------------------------------------------

// visit(id, saved) of all entries of the row's lists.
template <class Visit>
MM_DEVICE void each_changed(const Sampling& p, const SampleRow& row, const Visit& visit) {
  const int t = thread_index();
  for (int i = row.bias_begin + t; i < row.bias_end; i += kRowThreads) {
    visit(p.in.bias[i].id, p.changed.bias + i);
  }
  for (int i = row.count_begin + t; i < row.count_end; i += kRowThreads) {
    visit(p.in.count[i].id, p.changed.count + i);
  }
  for (int i = row.ban_begin + t; i < row.ban_end; i += kRowThreads) {
    visit(p.in.ban[i], p.changed.ban + i);
  }
}

MM_DEVICE void adjust(const Sampling& p, const SampleRow& row, float* logits) {
  // All before any is changed, so that an id that is listed twice gets the same value back twice.
  each_changed(p, row, [&](std::int32_t id, float* saved) { *saved = logits[id]; });
  block_barrier();
  for (int i = row.bias_begin + thread_index(); i < row.bias_end; i += kRowThreads) {
    const std::int32_t id = p.in.bias[i].id;
    if (i > row.bias_begin && p.in.bias[i - 1].id == id) continue;
    float logit = logits[id];
    for (int j = i; j < row.bias_end && p.in.bias[j].id == id; ++j) logit += p.in.bias[j].bias;
    logits[id] = logit;
  }
  block_barrier();
  for (int i = row.count_begin + thread_index(); i < row.count_end; i += kRowThreads) {
    const TokenCount& c = p.in.count[i];
    float logit = logits[c.id];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    if (c.generated > 0) {
      logit -= row.frequency_penalty * static_cast<float>(c.generated);
      logit -= row.presence_penalty;
    }
    logits[c.id] = logit;
  }
  block_barrier();
  for (int i = row.ban_begin + thread_index(); i < row.ban_end; i += kRowThreads) {
    logits[p.in.ban[i]] = NAN;
  }
  block_barrier();
}

// ---- a draw --------------------------------------------------------------------------------
//
// Every filter keeps a prefix of one order, so each only says how much mass it keeps, and the draw
// goes by the least of them. Mass is whole numbers, weights of at most 1 in units of 2^-f, f = 62 -
// the bits of n: sums are exact, in whatever order the bins are filled. So a draw differs from the
// exact one only where u lies so close to a border of the cumulative distribution: 4e-7 of it (the
// error of exp_exact and of its argument; more by 6e-8 of the distance of a logit from the highest
// over temperature) and n 2^-f (4e-9 at n = 131072). What has no mass is not drawn.

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

// ---- a row ---------------------------------------------------------------------------------

// The lowest id of the mask, 0 without one: what is chosen where no logit is a number.
MM_DEVICE std::int32_t first_allowed(const Candidates& row, Work& work) {
  std::uint64_t first = 0;
  for (std::int64_t i = thread_index(); row.mask != nullptr && i < row.n; i += kRowThreads) {
    const bool allowed = (row.mask[i / 32] >> (i % 32) & 1) != 0;
    if (allowed && first == 0) first = static_cast<std::uint64_t>(row.n - i);
  }
  first = block_greatest(first, work.reduce);
  return first == 0 ? 0 : static_cast<std::int32_t>(row.n - static_cast<std::int64_t>(first));
}

// budget: sample_kernel 64 registers 49472 shared; needs none
MM_KERNEL(kRowThreads)
void sample_kernel(Sampling p) {
  Work& work = *shared_memory<Work>();
  const std::int64_t e = block_x();
  const SampleRow& row = p.in.row[e];
  if (row.given >= 0) {
    if (thread_index() == 0) p.id[e] = row.given;
    return;
  }
  float* logits = p.logits + e * p.stride;
  const bool changes = row.bias_begin < row.bias_end || row.count_begin < row.count_end ||
                       row.ban_begin < row.ban_end;
  if (changes) adjust(p, row, logits);

  const Candidates all{logits, p.n, p.aligned,
                       row.mask_begin < 0 ? nullptr : p.in.mask + row.mask_begin};
  const Place best = block_greatest(first_behind(all, ~Place{0}), work.reduce);
  std::int32_t id;
  if (best == 0) {
    id = first_allowed(all, work);
  } else if (row.temperature == 0 || logit_at(best) == -INFINITY) {
    id = id_at(best);
  } else {
    const Draw draw{all, logit_at(best), row.temperature, p.unit};
    id = draw_id(draw, row, uniform_of(row.seed, p.positions[p.logits_row[e]]), work);
  }
  if (thread_index() == 0) p.id[e] = id;
  if (!changes) return;
  block_barrier();  // nobody reads them any more
  each_changed(p, row, [&](std::int32_t i, const float* saved) { logits[i] = *saved; });
}

}  // namespace

void sample(const SampleParams& p, const ChangedLogits& changed, Stream stream) {
  static_assert(sizeof(Work) <= 49472);
  const std::int64_t n = p.logits.shape[1];
  float unit = 0x1p62f;
  for (std::int64_t i = n; i > 0; i /= 2) unit /= 2;
  const Sampling sampling{p.logits.as<float>(),
                          p.logits.row_stride,
                          n,
                          rows_aligned(p.logits.data, p.logits.row_stride),
                          unit,
                          p.input,
                          changed,
                          p.step.positions,
                          p.step.logits_row,
                          p.out.id};
  launch(sample_kernel, {"sample", {p.step.logits_rows}, kRowThreads, sizeof(Work), stream},
         sampling);
}

}  // namespace mmengine::cuda
