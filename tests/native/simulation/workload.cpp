#include "simulation/workload.h"

namespace mmengine::simulation {

Workload::Workload(std::uint64_t seed) : random_(seed) {
  Sizes& s = sizes_;
  s.block_tokens = random_.one_of<int>({1, 1, 2, 2, 3, 4, 5, 8, 16, 64});
  s.max_context = random_.between(4, s.block_tokens < 16 ? 40 : 2 * s.block_tokens + 20);
  const int needed = (s.max_context + s.block_tokens - 1) / s.block_tokens;
  tight_ = random_.chance(30);
  s.slots = random_.between(tight_ ? 3 : 1, 6);
  s.num_blocks = needed + (tight_ ? random_.below(3) : random_.below(2 * needed + 2));
  s.prefill_chunk = random_.one_of<int>({1, 2, 3, 7, 16, 100});
  s.share = random_.chance(85);
  s.limits = {s.prefill_chunk + s.slots, s.slots, s.slots + random_.one_of<int>({1, 2, 4, 16}),
              s.max_context, needed};
  left_ = random_.between(1, 16);
  arrival_percent_ = random_.one_of<int>({5, 40, 100});
  cancel_percent_ = random_.one_of<int>({0, 2, 10});
  salts_ = random_.chance(25);
  for (int i = 0; i < 2; ++i) {
    std::vector<std::int32_t> stem;
    for (int j = 0; j < s.max_context; ++j) stem.push_back(random_.below(kVocab));
    known_.push_back(stem);
  }
}

std::vector<std::int32_t> Workload::prompt(int length) {
  std::vector<std::int32_t> tokens;
  if (random_.chance(70)) {
    tokens = random_.one_of(known_);
    const int most = std::min(length, static_cast<int>(tokens.size()));
    tokens.resize(static_cast<std::size_t>(random_.chance(50) ? most : random_.between(0, most)));
  }
  while (static_cast<int>(tokens.size()) < length) tokens.push_back(random_.below(kVocab));
  return tokens;
}

Request Workload::request() {
  Request r;
  SamplingParams& p = r.sampling;
  r.id = ++last_;
  r.logits = random_.chance(10);
  const int longest = sizes_.max_context - (r.logits ? 0 : 1);
  r.prompt = prompt(tight_               ? random_.between(1, (longest + 3) / 4)
                    : random_.chance(25) ? longest
                                         : random_.between(1, longest));
  const int room = std::max(sizes_.max_context - static_cast<int>(r.prompt.size()), 1);
  p.max_tokens = random_.chance(tight_ ? 70 : 30) ? -1 : random_.between(1, room);
  p.min_tokens =
      random_.chance(50) ? random_.between(0, p.max_tokens < 0 ? room : p.max_tokens) : 0;
  for (int i = random_.below(tight_ ? 2 : 5); i > 0; --i)
    r.stop_ids.push_back(random_.below(kVocab));
  p.temperature = random_.chance(50) ? 0.0f : 0.8f;
  p.top_k = random_.below(4);
  p.top_p = 1 - 0.1f * static_cast<float>(random_.below(3));
  p.min_p = 0.1f * static_cast<float>(random_.below(3));
  p.logprobs = random_.between(-1, 3);
  if (random_.chance(25)) p.repetition_penalty = 1.3f;
  if (random_.chance(20)) p.frequency_penalty = 0.4f;
  if (random_.chance(20)) p.presence_penalty = 0.7f;
  if (random_.chance(20)) {
    for (int i = 0; i < 3; ++i) p.logit_bias.emplace_back(random_.below(kVocab), 1.5f * i - 1);
  }
  if (!r.logits && random_.chance(15)) p.prompt_logprobs = random_.below(3);
  if (!r.logits && random_.chance(20)) {
    r.grammar = 1 + random_.next() % 1000000;
    for (std::int32_t& stop : r.stop_ids) stop = kFreeTokens + stop % (kVocab - kFreeTokens);
    if (random_.chance(20)) r.fails_at = 4 * random_.below(4);
  }
  r.seed = random_.next();
  if (salts_) r.salt = random_.one_of<std::string>({"", "a", "b"});
  return r;
}

std::vector<Request> Workload::arrivals() {
  std::vector<Request> all;
  if (left_ == 0 || !random_.chance(arrival_percent_)) return all;
  --left_;
  const RequestId before = last_;
  all.push_back(request());
  if (before > 0 && random_.chance(20)) {  // waits for some other prompt, perhaps a shorter one
    all.back().same_prompt_as = random_.chance(80) ? before : 1 + random_.next() % (before + 3);
    if (all.back().same_prompt_as >= all.back().id) all.back().same_prompt_as = 0;
  }
  if (!all.back().logits && random_.chance(25)) {  // several answers to one prompt
    const int children = random_.between(1, 3);
    for (int i = 0; i < children; ++i) {
      Request child = all.front();
      child.id = ++last_;
      child.seed = mix(child.seed, static_cast<Hash>(i) + 1);
      child.same_prompt_as = all.front().id;
      if (random_.chance(20)) child.prompt.push_back(random_.below(kVocab));
      if (static_cast<int>(child.prompt.size()) >= sizes_.max_context) child.prompt.pop_back();
      if (random_.chance(10)) child.prompt.front() = random_.below(kVocab);
      all.push_back(child);
    }
  }
  return all;
}

}  // namespace mmengine::simulation
