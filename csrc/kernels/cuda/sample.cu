// Choosing ids as kernels/ref/sample.cpp does it: a block for a row. Bias, penalties and bans are
// written over the row's logits and taken back at the end. A greedy row reads its logits once, a
// draw (draw.cuh) some times.
// Limits: 64 registers, 48 KiB + 320 bytes of shared memory. Never run on a device.
#include "kernels/cuda/draw.cuh"
#include "kernels/cuda/launch.h"

namespace mmengine::cuda {
namespace {

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
  static_assert(sizeof(Work) <= 49472);  // the budget
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
