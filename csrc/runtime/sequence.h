// The words both halves of the runtime share: Sequence (one generated answer), Schedule (what the
// scheduler asks of a step) and StepResult (what the runner answers). Sequences are owned and
// changed by the scheduler half, on the engine thread; the runner half reads them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/params.h"
#include "mmengine/types.h"
#include "runtime/constraint.h"

namespace mmengine {

enum class Status : std::uint8_t { waiting, running, finished };

struct PrefixKey {
  std::uint64_t high = 0, low = 0;
  bool operator==(const PrefixKey&) const = default;
};

// The blocks at the front of one sequence that are in the index, whoever computed them first.
struct PrefixChain {
  struct Link {
    PrefixKey key;
    std::uint64_t serial = 0;  // of the index's entry; 0: none, nor for what follows
    bool own = true;           // the entry's block is the sequence's; others' may be evicted
  };
  std::string salt;  // sequences share nothing unless their salts are equal
  std::vector<Link> links;
};

// The distinct tokens of a sequence and how often each was generated, kept up as it grows, so that
// penalties cost as much as there are distinct tokens.
class TokenCounts {
 public:
  void add_prompt(std::int32_t token) { entry(token); }
  void add_generated(std::int32_t token) { ++entry(token).generated; }
  const std::vector<TokenCount>& list() const { return list_; }  // in order of first appearance

 private:
  TokenCount& entry(std::int32_t token) {
    const auto [place, added] = index_.try_emplace(token, list_.size());
    if (added) list_.push_back({token, 0});
    return list_[place->second];
  }

  std::vector<TokenCount> list_;
  std::unordered_map<std::int32_t, std::size_t> index_;  // token -> place in list_
};

struct Sequence {
  RequestId id = 0;
  SamplingParams sampling;
  std::uint64_t seed = 0;
  RequestId same_prompt_as = 0;            // waits for the KV of that one's prompt; 0: for nobody's
  bool logits = false;                     // every prompt row yields logits, nothing is generated
  std::vector<std::int32_t> stop_ids;      // ending tokens, the model's and the request's
  std::unique_ptr<Constraint> constraint;  // null: any token may follow

  // Progress. tokens[0, computed) have true KV.
  std::vector<std::int32_t> tokens;  // prompt, then generated
  int num_prompt_tokens = 0;
  TokenCounts counts;  // of those that its penalties apply to; empty without penalties
  int computed = 0;
  int cached_tokens = 0;  // of the prompt, that were not computed for it

  // Place
  Status status = Status::waiting;
  FinishReason finish = FinishReason::running;
  std::string error;  // of FinishReason::error
  int slot = -1;
  bool live = false;  // the slot's pending token is its next one: fed from the device
  std::vector<std::int32_t> block_table;
  PrefixChain prefix;  // its leading full blocks, known to the prefix index
  int table_sent = 0;  // leading entries of block_table that the runner has seen
  int preemptions = 0;
  int refused_with = -1;  // blocks that were available when there were too few to begin
  int rows_sent = 0;      // leading prompt rows that were delivered, before a preemption, too

  int num_generated() const { return static_cast<int>(tokens.size()) - num_prompt_tokens; }
  // Leading prompt rows whose logits, or log-probabilities of the next token, are asked for.
  int num_wanted_rows() const {
    if (logits) return num_prompt_tokens;
    return sampling.prompt_logprobs >= 0 ? num_prompt_tokens - 1 : 0;
  }
  bool wants_rows() const { return rows_sent < num_wanted_rows(); }
  // Ending tokens are not chosen before min_tokens.
  bool bans_stops() const { return num_generated() < sampling.min_tokens; }
  // Enters the prompt into the counts; once, before anything is generated.
  void count_prompt();
  // Appends a generated token and decides whether it was the last.
  FinishReason append(std::int32_t token, int max_context);
};

constexpr int kFromSlot = -1;

struct Span {  // rows of one sequence in one step
  Sequence* sequence = nullptr;
  int start = 0;  // position of the first row, or kFromSlot: where the device is
  int rows = 0;
  int first_logits = 0;  // rows [first_logits, rows) get logits; = rows: none
  bool samples = false;  // its last row yields a token
  int table_begin = 0;   // block_table entries from here are new to the runner
};

struct BlockCopy {
  std::int32_t source = 0, target = 0;
};

struct Schedule {
  std::vector<Span> spans;
  std::vector<BlockCopy> copies;  // before any row is written; no source is a target
  bool empty() const { return spans.empty(); }
};

struct StepResult {  // host memory, valid until the next step
  SampleOutput out;
  const std::int32_t* cu_logits = nullptr;  // [S+1]
  const float* logits = nullptr;            // [E, vocab]
  std::int64_t kv_saturated = 0;            // of all steps so far
};

}  // namespace mmengine
