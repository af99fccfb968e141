// The request's fields against their ranges (README, "Requests"). Comparisons are written so that
// NaN fails them.
#include <cmath>

#include "api/load.h"
#include "base/check.h"

namespace mmengine {
namespace {

template <class... Args>
[[noreturn]] void reject(const char* field, const char* reason, const Args&... message) {
  throw Error(ErrorCode::request, field, str(message...), {.reason = reason, .param = field});
}

template <class T>
void check_range(const char* field, T value, T low, T high) {
  if (!(value >= low && value <= high)) {
    reject(field, "out_of_range", "expected ", low, " to ", high, ", got ", value);
  }
}

void check_id(const char* field, std::int32_t id, std::int64_t vocab_size) {
  if (id < 0 || id >= vocab_size) {
    reject(field, "token_id", "expected tokens from 0 to ", vocab_size - 1, ", got ", id);
  }
}

void check_ids(const char* field, const std::vector<std::int32_t>& ids, std::int64_t vocab_size) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      reject(field, "token_id", "token ", i, " is outside the vocabulary, expected 0 to ",
             vocab_size - 1, ", got ", ids[i]);
    }
  }
}

}  // namespace

void validate_request(const Request& request, const ModelInfo& info, std::int64_t max_context) {
  const SamplingParams& p = request.sampling;
  check_range("temperature", p.temperature, 0.0f, 2.0f);
  if (!(p.top_p > 0.0f && p.top_p <= 1.0f)) {
    reject("top_p", "out_of_range", "expected more than 0 and at most 1, got ", p.top_p);
  }
  check_range("min_p", p.min_p, 0.0f, 1.0f);
  check_range("top_k", p.top_k, 0, 1 << 30);
  check_range("presence_penalty", p.presence_penalty, -2.0f, 2.0f);
  check_range("frequency_penalty", p.frequency_penalty, -2.0f, 2.0f);
  if (!(p.repetition_penalty > 0.0f && p.repetition_penalty <= 10.0f)) {
    reject("repetition_penalty", "out_of_range", "expected more than 0 and at most 10, got ",
           p.repetition_penalty);
  }
  if (p.logit_bias.size() > 1024) {
    reject("logit_bias", "too_many", "expected at most 1024 tokens, got ", p.logit_bias.size());
  }
  for (const auto& [token, bias] : p.logit_bias) {
    check_id("logit_bias", token, info.vocab_size);
    check_range("logit_bias", bias, -100.0f, 100.0f);
  }
  check_range("logprobs", p.logprobs, -1, kMaxLogprobs);
  check_range("prompt_logprobs", p.prompt_logprobs, -1, kMaxLogprobs);
  check_range("min_tokens", p.min_tokens, 0, 1 << 30);
  if (p.stop_token_ids.size() > 1024) {
    reject("stop_token_ids", "too_many", "expected at most 1024, got ", p.stop_token_ids.size());
  }
  check_ids("stop_token_ids", p.stop_token_ids, info.vocab_size);
  if (p.max_tokens == 0 || p.max_tokens < -1) {
    reject("max_tokens", "out_of_range", "expected at least 1, got ", p.max_tokens);
  }
  if (p.max_tokens > 0 && p.min_tokens > p.max_tokens) {
    reject("min_tokens", "out_of_range", "expected at most max_tokens = ", p.max_tokens, ", got ",
           p.min_tokens);
  }

  constexpr double kLongest = 1e9;  // seconds: what a clock can count
  check_range("deadline_s", request.deadline_s, 0.0, kLongest);
  if (request.logits && request.constraint) {
    reject("constraint", "unsupported", "nothing is generated where logits are asked for");
  }
  const auto prompt = static_cast<std::int64_t>(request.token_ids.size());
  if (prompt == 0) reject("prompt", "empty", "expected at least one token, got none");
  check_ids("prompt", request.token_ids, info.vocab_size);
  // A prompt that is only scored may fill the context; one that is answered needs room for a token.
  if (prompt > max_context - (request.logits ? 0 : 1)) {
    reject("prompt", "context_length", "the prompt has ", prompt, " tokens, the context holds ",
           max_context, "; shorten it, or raise max_context");
  }
  if (p.max_tokens > max_context - prompt) {
    reject("max_tokens", "context_length", "the prompt's ", prompt,
           " tokens and max_tokens = ", p.max_tokens, " pass the context of ", max_context,
           " tokens");
  }
}

}  // namespace mmengine
