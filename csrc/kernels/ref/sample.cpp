// One logits row -> one id. All filters keep a prefix of the candidates in descending order of
// their logits (ids ascending on ties), so only as much of that order is made as a draw needs.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/ref/launch.h"

namespace mmengine::ref {
namespace {

using Candidate = SampleScratch::Candidate;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

std::uint64_t finalise(std::uint64_t z) {  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Greatest number of the row, -infinity if it has none. Comparisons are false for NaN.
float highest(const float* logits, std::int64_t n) {
  constexpr int kLanes = 16;
  float best[kLanes];
  std::fill_n(best, kLanes, -kInfinity);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) best[j] = logits[i + j] > best[j] ? logits[i + j] : best[j];
  }
  for (; i < n; ++i) best[0] = logits[i] > best[0] ? logits[i] : best[0];
  return *std::max_element(best, best + kLanes);
}

// The lowest id of the mask: what is chosen where none of its logits is a number.
std::int32_t first_allowed(const std::uint32_t* mask) {
  std::int32_t word = 0;
  while (mask[word] == 0) ++word;
  return word * 32 + std::countr_zero(mask[word]);
}

std::int32_t greedy(const float* logits, std::int64_t n, float maximum) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (logits[i] == maximum) return static_cast<std::int32_t>(i);
  }
  return 0;
}

// Unnormalised probability. The maximum itself may be infinite.
float weight(float logit, float maximum, float temperature) {
  return logit == maximum ? 1.0f : std::exp((logit - maximum) / temperature);
}

// Candidates in descending order, sorted a part at a time.
class Descending {
 public:
  explicit Descending(std::vector<Candidate>& c) : candidates_(c) {}
  const Candidate& operator[](std::size_t i) {
    while (i >= sorted_) {
      const auto begin = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted_);
      const std::size_t end = std::min(candidates_.size(), std::max<std::size_t>(64, sorted_ * 8));
      const auto middle = candidates_.begin() + static_cast<std::ptrdiff_t>(end);
      if (middle != candidates_.end()) std::nth_element(begin, middle, candidates_.end(), before);
      std::sort(begin, middle, before);
      sorted_ = end;
    }
    return candidates_[i];
  }

 private:
  std::vector<Candidate>& candidates_;
  std::size_t sorted_ = 0;
};

// The numbers of the row whose bit of the mask is set, or all where there is no mask, ids
// ascending.
void gather(const float* logits, std::int64_t n, const std::uint32_t* mask,
            std::vector<Candidate>& candidates) {
  const auto take = [&](std::int64_t i) {
    if (!std::isnan(logits[i])) candidates.push_back({logits[i], static_cast<std::int32_t>(i)});
  };
  candidates.clear();
  if (mask == nullptr) {
    candidates.reserve(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) take(i);
    return;
  }
  for (std::int64_t first = 0; first < n; first += 32) {
    for (std::uint32_t bits = mask[first / 32]; bits != 0; bits &= bits - 1) {
      const std::int64_t i = first + std::countr_zero(bits);
      if (i < n) take(i);
    }
  }
}

// Of candidates that are gathered; `maximum` is their highest logit.
std::int32_t draw(float maximum, const SampleRow& row, double u, SampleScratch& scratch) {
  std::vector<Candidate>& candidates = scratch.candidates;
  if (row.top_k > 0 && static_cast<std::size_t>(row.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + row.top_k, candidates.end(), before);
    candidates.resize(static_cast<std::size_t>(row.top_k));
  }
  double total = 0;
  for (const Candidate& c : candidates) total += weight(c.logit, maximum, row.temperature);

  Descending order(candidates);
  std::vector<float>& kept = scratch.weights;
  kept.clear();
  const bool all = row.top_p >= 1 && row.min_p <= 0;
  double mass = 0;
  while (kept.size() < candidates.size()) {
    const float w = weight(order[kept.size()].logit, maximum, row.temperature);
    if (!kept.empty() && (w < row.min_p || (row.top_p < 1 && mass >= row.top_p * total))) break;
    kept.push_back(w);
    mass += w;
    if (all && mass > u * total) break;  // what follows cannot be drawn
  }
  const double target = u * (all ? total : mass);
  double sum = 0;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    sum += kept[i];
    if (sum > target) return candidates[i].id;
  }
  return candidates[kept.size() - 1].id;
}

// Natural logarithm of the sum of exp(logit) over the numbers of the row.
double log_sum_exp(const float* logits, std::int64_t n, float maximum) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (logits[i] == maximum) {
      sum += 1;
    } else if (!std::isnan(logits[i])) {
      sum += std::exp(static_cast<double>(logits[i]) - maximum);
    }
  }
  return maximum + std::log(sum);
}

float log_probability(float logit, double log_sum) {
  return static_cast<float>(static_cast<double>(logit) - log_sum);
}

void list_highest(const float* logits, std::int64_t n, int count, double log_sum, std::int32_t* ids,
                  float* logprobs) {
  Candidate top[kMaxLogprobs];
  int size = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (std::isnan(logits[i]) || (size == count && !(count > 0 && logits[i] > top[size - 1].logit)))
      continue;
    int j = size < count ? size++ : size - 1;
    for (; j > 0 && logits[i] > top[j - 1].logit; --j) top[j] = top[j - 1];
    top[j] = {logits[i], static_cast<std::int32_t>(i)};
  }
  for (int j = 0; j < kMaxLogprobs; ++j) {
    ids[j] = j < size ? top[j].id : -1;
    logprobs[j] =
        j < size ? log_probability(top[j].logit, log_sum) : std::numeric_limits<float>::quiet_NaN();
  }
}

// Bias, penalties and bans of a row, written over its logits; `changed` gets what was there. The
// cost is that of the lists, whatever the vocabulary.
void adjust(const SampleInput& input, const SampleRow& row, float* logits,
            std::vector<Candidate>& changed) {
  const auto write = [&](std::int32_t id, float logit) {
    changed.push_back({logits[id], id});
    logits[id] = logit;
  };
  changed.clear();
  for (std::int32_t i = row.bias_begin; i < row.bias_end; ++i) {
    const LogitBias& b = input.bias[i];
    write(b.id, logits[b.id] + b.bias);
  }
  for (std::int32_t i = row.count_begin; i < row.count_end; ++i) {
    const TokenCount& c = input.count[i];
    float logit = logits[c.id];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    if (c.generated > 0) {
      logit -= row.frequency_penalty * static_cast<float>(c.generated);
      logit -= row.presence_penalty;
    }
    write(c.id, logit);
  }
  for (std::int32_t i = row.ban_begin; i < row.ban_end; ++i) {
    write(input.ban[i], std::numeric_limits<float>::quiet_NaN());
  }
}

}  // namespace

double uniform(std::uint64_t seed, std::int64_t position) {
  constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15u;
  const std::uint64_t first = finalise(seed + kStep);
  const std::uint64_t h = finalise(first + (static_cast<std::uint64_t>(position) + 1) * kStep);
  return static_cast<double>(h >> 11) * 0x1p-53;
}

namespace {

// Of the logits as bias, penalties and bans left them; `maximum` is the highest one before.
std::int32_t choose(const SampleParams& p, const SampleRow& row, std::int64_t e, float maximum,
                    SampleScratch& scratch) {
  const float* logits = p.logits.as<float>() + e * p.logits.row_stride;
  const std::int64_t n = p.logits.shape[1];
  const std::uint32_t* mask = row.mask_begin < 0 ? nullptr : p.input.mask + row.mask_begin;
  std::vector<Candidate>& candidates = scratch.candidates;
  if (mask != nullptr) {
    gather(logits, n, mask, candidates);
    if (candidates.empty()) return first_allowed(mask);
    const Candidate best = *std::min_element(candidates.begin(), candidates.end(), before);
    if (row.temperature == 0 || best.logit == -kInfinity) return best.id;
    maximum = best.logit;
  } else {
    if (!scratch.changed.empty()) maximum = highest(logits, n);
    if (row.temperature == 0 || maximum == -kInfinity) return greedy(logits, n, maximum);
    gather(logits, n, nullptr, candidates);
  }
  const std::int64_t position = p.step.positions[p.step.logits_row[e]];
  return draw(maximum, row, uniform(row.seed, position), scratch);
}

}  // namespace

void sample_row(const SampleParams& p, std::int64_t e, SampleScratch& scratch) {
  const SampleRow& row = p.input.row[e];
  float* logits = p.logits.as<float>() + e * p.logits.row_stride;
  const std::int64_t n = p.logits.shape[1];
  const bool scored = row.logprobs >= 0 || row.given >= 0;
  float maximum = highest(logits, n);
  double log_sum = 0;
  if (scored) {
    log_sum = log_sum_exp(logits, n, maximum);
    list_highest(logits, n, std::max(row.logprobs, 0), log_sum, p.out.top_id + e * kMaxLogprobs,
                 p.out.top_logprob + e * kMaxLogprobs);
  }

  std::int32_t id = row.given;
  if (id < 0) {
    adjust(p.input, row, logits, scratch.changed);
    id = choose(p, row, e, maximum, scratch);
    // Backwards, so that an id changed twice gets its first value.
    for (auto c = scratch.changed.rbegin(); c != scratch.changed.rend(); ++c) {
      logits[c->id] = c->logit;
    }
  }
  p.out.id[e] = id;
  if (scored) p.out.logprob[e] = log_probability(logits[id], log_sum);
}

}  // namespace mmengine::ref
