// What crosses the boundary between a host program and the engine: plain data. Token ids are int32.
// Standard library only, C++17.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mmengine {

using RequestId = std::uint64_t;

// automatic: as stored. int8, int4: codes with an f16 scale (int4: and minimum) per 32 weights, and
// inputs quantised likewise; under int4 embedding and head are int8.
enum class WeightDtype { automatic, f32, bf16, fp8, int8, int4 };
// automatic: f32 beside f32 weights, or bf16. fp8: e4m3 of the values themselves, clamped to +-448.
enum class KvDtype { automatic, f32, bf16, fp8 };
enum class FinishReason { running, stop, length, cancelled, error };

struct EngineOptions {
  std::string device = "auto";  // "auto" | "cpu" | "ref" (slow, the specification) | "cuda"
  WeightDtype weight_dtype = WeightDtype::automatic;
  KvDtype kv_dtype = KvDtype::automatic;
  std::int64_t max_context = 0;         // tokens; 0 = the most that the memory plan allows
  int max_batch = 0;                    // sequences running at once; 0 = 16
  int max_waiting = 0;                  // requests that have not begun; 0 = 16384
  std::int64_t max_waiting_tokens = 0;  // their prompts' tokens together; 0 = no limit
  int prefill_chunk = 0;                // most prompt tokens of one step; 0 = 256, cuda 2048
  std::int64_t kv_blocks = 0;           // size of the KV pool; 0 = the plan's choice
  std::int64_t memory_bytes = 0;        // what may be used; 0 = what is available now
  int threads = 0;                      // 0 = the processors this process may use
  std::optional<std::uint64_t> seed;    // of requests without a seed; absent = from the system
  bool prefix_cache = true;             // the KV of a prompt's beginning is computed once
  bool allow_nonfinite = false;         // load weights that hold NaN or infinity
  // cpu: "" = the best of this machine | "scalar" | "avx2" | "avx512"; results are the same bits
  std::string instruction_set;
  // Of the stored bytes; called by the thread that loads, at most ten times a second, also within
  // a matrix. May throw to stop.
  std::function<void(double fraction)> progress;
};

struct SamplingParams {
  int max_tokens = -1;                                   // -1 = until end of sequence or context
  int min_tokens = 0;                                    // no ending token is chosen before
  float temperature = 0.0f, top_p = 1.0f, min_p = 0.0f;  // temperature 0 = greedy
  int top_k = 0;                                         // 0 = all
  std::optional<std::uint64_t> seed;
  // Of tokens seen before: a positive logit is divided by repetition_penalty (prompt and answer; 1
  // = off), another multiplied with it; then frequency_penalty for each occurrence in the answer,
  // and presence_penalty once, are subtracted.
  float repetition_penalty = 1.0f, frequency_penalty = 0.0f, presence_penalty = 0.0f;
  std::vector<std::pair<std::int32_t, float>> logit_bias;  // token, added to its logit before that
  int logprobs = -1;         // -1 = none, else how many alternatives (at most 20)
  int prompt_logprobs = -1;  // the same of the prompt's tokens; its KV is then computed anew
  bool ignore_eos = false;
  std::vector<std::int32_t> stop_token_ids;
};

// What tokens may follow, in one answer: a grammar, a list of choices. Called by one thread at a
// time, in the order of the answer's tokens; by a thread of the engine, while the model computes.
// An exception ends the request with FinishReason::error.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Sets all words, ceil(vocab_size / 32) of them. Bit t % 32 of word t / 32: t may be next. No
  // bit: the answer ends here, with FinishReason::stop.
  virtual void mask(std::uint32_t* bits, std::size_t num_words) = 0;
  virtual bool accept(std::int32_t token) = 0;  // advance; false, and unchanged, if not allowed
  virtual void rollback(int num_tokens) = 0;    // undo the last accepts
  virtual std::unique_ptr<TokenConstraint> clone() const = 0;  // in the same state
  // The tokens that must be next, if that is known: they are taken without being sampled, each by
  // accept, as far as it agrees; of a long list only the first, before it is asked for again.
  virtual std::vector<std::int32_t> forced() { return {}; }
};

struct Request {
  std::vector<std::int32_t> token_ids;
  SamplingParams sampling;
  std::unique_ptr<TokenConstraint> constraint;  // null: any token may follow
  std::string cache_salt;                       // KV is shared only among requests with equal salts
  bool logits = false;    // no generation: the logits of every prompt token reach the sink
  double deadline_s = 0;  // seconds from submit until it ends with "cancelled"; 0 = none
  // A request submitted before, or 0: this one waits until that one's prompt is computed, to begin
  // from its KV instead of computing the same beside it. It need not be the same prompt.
  RequestId same_prompt_as = 0;
};

struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0;  // natural log
};

struct Usage {
  int prompt_tokens = 0, completion_tokens = 0;
  int cached_tokens = 0;  // of the prompt, whose KV was there already
};

// What one step added to one request. Pointers are valid during the sink call only.
struct StepOutput {
  RequestId id = 0;
  const std::int32_t* token_ids = nullptr;  // an ending token is included
  std::size_t num_tokens = 0;               // several: those that a constraint forces
  // [num_tokens, num_logprobs], the chosen token first; such outputs have one token at most.
  const TokenLogprob* logprobs = nullptr;
  std::size_t num_logprobs = 0;  // 1 + alternatives; 0: none asked for
  // Of the prompt tokens that follow those of earlier outputs, the first of all left out:
  // [num_prompt_rows, num_prompt_logprobs], the prompt's token first.
  const TokenLogprob* prompt_logprobs = nullptr;
  std::size_t num_prompt_rows = 0, num_prompt_logprobs = 0;
  const float* logits = nullptr;  // [num_logits_rows, vocab_size]
  std::size_t num_logits_rows = 0;
  FinishReason finish = FinishReason::running;
  std::string error;  // of FinishReason::error: what went wrong
  Usage usage;
};

using Sink = std::function<void(const StepOutput&)>;

struct EngineStats {
  std::int64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, preemptions = 0;
  std::int64_t cached_tokens = 0;  // of prompt_tokens, whose KV was there already
  // free + used + cached = total; cached: of no running request, kept for prompts to come.
  std::int64_t kv_blocks_total = 0, kv_blocks_free = 0, kv_blocks_used = 0, kv_blocks_cached = 0;
  std::int64_t kv_saturated =
      0;  // elements that a KV cache in fp8 clamped, each time it was stored
  int requests_running = 0, requests_waiting = 0;
  // Of all steps: choosing rows, describing them to the device and taking its results in, during
  // which it waits; and the device's own work. Forming texts and streaming them is in neither.
  double seconds_scheduling = 0, seconds_computing = 0;
};

// Where the bytes go. Regions are the very list the loader allocates from.
struct MemoryPlan {
  struct Region {
    std::string name;
    std::int64_t bytes = 0;
  };
  std::vector<Region> regions;
  std::int64_t weights_bytes = 0;    // as stored in the checkpoint
  std::int64_t resident_bytes = 0;   // all regions
  std::int64_t bytes_per_token = 0;  // weights that one generated token reads
  // Multiplications and additions: of a token in all layers, of the head where its logits are
  // wanted, and of its attention for each position that it reads.
  std::int64_t flops_per_token = 0, flops_per_logits_row = 0, flops_per_position = 0;
  std::int64_t kv_bytes_per_token_f32 = 0, kv_bytes_per_token_bf16 = 0, kv_bytes_per_token_fp8 = 0;
  std::int64_t kv_blocks = 0, kv_block_tokens = 0, max_context = 0;
  KvDtype kv_dtype = KvDtype::bf16;  // resolved
};

// A vision tower; the last three count its projector, too. This version does not compute them.
struct VisionInfo {
  std::int64_t hidden_size = 0, intermediate_size = 0, num_layers = 0, num_heads = 0;
  std::int64_t patch_size = 0, image_size = 0, spatial_merge_size = 0;
  std::int64_t tensors = 0, parameters = 0, bytes = 0;
};

struct ModelInfo {
  std::string kind;                  // "model" | "draft head" (EAGLE; no embeddings, no head)
  std::string architecture, layout;  // layout: "hf" | "mistral" | "synthetic"
  std::int64_t hidden_size = 0, intermediate_size = 0, vocab_size = 0;
  std::int64_t num_layers = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0;
  std::int64_t max_context = 0;
  double rope_theta = 0, norm_eps = 0;
  std::string rope_type;  // "default" | "yarn" | "llama3"
  // Factor over original_context, and what cos and sin are multiplied with; 1, 0, 1 if plain.
  double rope_factor = 1, rope_original_context = 0, rope_attention_factor = 1;
  double rope_beta_fast = 0, rope_beta_slow = 0;  // YaRN: rotations at the borders of the blend
  bool rope_truncate = true;                      // the borders are whole pairs
  double rope_low_freq_factor = 0, rope_high_freq_factor = 0;  // the same borders of llama3
  // Queries are multiplied by 1 + beta ln(1 + floor(position / context)); beta 0: they are not.
  double rope_scaling_beta = 0, rope_scaling_context = 0;
  bool tied_embeddings = false;
  std::vector<std::int32_t> eos_ids;
  std::string weight_dtype;  // "f32", "bf16", "fp8", "int8", "int4": the format of most weights
  // As stored: "none", "fp8, weights only", "fp8, static activations", "fp8, dynamic activations",
  // "int8, groups of 32", "int4, groups of 32".
  std::string quantization;
  std::optional<VisionInfo> vision;  // where there are tensors of a tower
  std::int64_t weights_bytes = 0;
  std::vector<std::string> warnings;
  struct Tensor {
    std::string name, dtype;
    std::vector<std::int64_t> shape;
  };
  std::vector<Tensor> tensors;  // under the engine's names; empty unless inspected
};

}  // namespace mmengine
