// Natural log-probabilities of the unmodified distribution: of the chosen id and of the highest, in
// order. A block for a row: the sum of exp in double, f32 terms, in an order fixed by the row's
// length; then the list, one id after the other, for which only the thread whose candidate was
// taken looks at its logits again. Limits: 64 registers, 256 bytes of shared memory. Never run on a
// device.
#include "kernels/cuda/candidates.cuh"
#include "kernels/cuda/launch.h"

namespace mmengine::cuda {
namespace {

struct Scoring {
  const float* logits;
  std::int64_t stride, n;
  bool aligned;
  const SampleRow* rows;
  SampleOutput out;
};

MM_DEVICE float log_probability(float logit, double log_sum) {
  return static_cast<float>(static_cast<double>(logit) - log_sum);
}

// budget: logprobs_kernel 64 registers 256 shared; needs none
MM_KERNEL(kRowThreads)
void logprobs_kernel(Scoring p) {
  const std::int64_t e = block_x();
  const int listed = p.rows[e].logprobs;
  if (listed < 0 && p.rows[e].given < 0) return;
  const float* logits = p.logits + e * p.stride;
  const Candidates row{logits, p.n, p.aligned, nullptr};

  Place own = first_behind(row, ~Place{0});
  Place next = block_greatest(own, shared_memory<std::uint64_t>());
  const float maximum = next == 0 ? -INFINITY : logit_at(next);
  double sum = 0;
  each_candidate(row, [&](Place, float x) {
    sum += x == maximum ? 1.0 : static_cast<double>(exp_exact(x - maximum));
  });
  sum = block_sum(sum, shared_memory<double>());
  const bool writes = thread_index() == 0;
  const double log_sum = writes ? maximum + log(sum) : 0;
  if (writes) p.out.logprob[e] = log_probability(logits[p.out.id[e]], log_sum);

  for (int i = 0; i < kMaxLogprobs; ++i) {
    const bool some = i < listed && next != 0;
    if (writes) {
      p.out.top_id[e * kMaxLogprobs + i] = some ? id_at(next) : -1;
      p.out.top_logprob[e * kMaxLogprobs + i] =
          some ? log_probability(logit_at(next), log_sum) : NAN;
    }
    if (!some || i + 1 >= listed) {
      next = 0;
      continue;
    }
    if (own == next) own = first_behind(row, next);
    next = block_greatest(own, shared_memory<std::uint64_t>());
  }
}

}  // namespace

void logprobs(const SampleParams& p, Stream stream) {
  const Scoring scoring{p.logits.as<const float>(),
                        p.logits.row_stride,
                        p.logits.shape[1],
                        rows_aligned(p.logits.data, p.logits.row_stride),
                        p.input.row,
                        p.out};
  launch(logprobs_kernel, {"logprobs", {p.step.logits_rows}, kRowThreads, kReduceBytes, stream},
         scoring);
}

}  // namespace mmengine::cuda
