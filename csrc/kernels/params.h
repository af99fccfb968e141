// The contract between model and kernels: the shared words (Step, Weight, KvView, Slots) and one
// plain struct per stage. Every pointer is device memory unless marked host; shapes stand beside
// it.
//   R rows of a step    S sequences with rows    E logits rows    H hidden size
// A row's result depends on that row's own data and its sequence's KV, never on R, S or E.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/tensor.h"

namespace mmengine {

constexpr int kMaxLogprobs = 20;

// ---- sizes ---------------------------------------------------------------------------------

struct ModelShape {
  std::int64_t hidden_size = 0, intermediate_size = 0, vocab_size = 0;
  std::int64_t num_layers = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0;
};

struct StepLimits {  // the largest step; every fixed address and every buffer is sized from it
  int rows = 0;
  int sequences = 0;    // sequences running at once = slots
  int logits_rows = 0;  // E at most
  int context_tokens = 0;
  int max_blocks = 0;  // of one sequence
};

// ---- weights -------------------------------------------------------------------------------

enum class Role : std::uint8_t { embed, qkv_proj, o_proj, gate_up_proj, down_proj, lm_head };
// fp8: e4m3 codes, one f32 scale per row.
// int8, int4: every kGroup weights along k share an f16 scale d, and of int4 an f16 minimum m:
//   int8: w = d code, codes -127 .. 127        int4: w = d code + m, codes 0 .. 15
// The input is quantised in the same groups as part of the multiplication, whatever the number of
// rows (kernels/ref/launch.h); producers write f32 for it, InputQuant stays none.
enum class WeightFormat : std::uint8_t { f32, bf16, fp8, int8, int4 };

constexpr std::int64_t kGroup = 32;  // the last group of a row is padded with zeros

constexpr std::int64_t num_groups(std::int64_t k) { return (k + kGroup - 1) / kGroup; }
constexpr bool has_groups(WeightFormat format) {
  return format == WeightFormat::int8 || format == WeightFormat::int4;
}

struct WeightSpec {  // from the config alone: enough to compute packed bytes
  Role role = Role::o_proj;
  std::int64_t n = 0, k = 0;  // whole matrix [n, k]; qkv and gate_up are their parts stacked
  WeightFormat format = WeightFormat::bf16;
  std::int64_t head_dim = 0;  // qkv_proj: head boundaries of the rotary row order
};

// What a producer does to a row of x before it is multiplied with the weight. With code(v) = v
// clamped to +-448 and rounded to e4m3, ties to even (model-spec 2.3):
enum class InputQuant : std::uint8_t {
  none,
  fixed,      // code(x / input_scale); the weight's row scales include input_scale
  per_token,  // code(x / s) with s = max|x| / 448 of the row, by which its outputs are multiplied
};

struct Weight {  // the metadata is public, the layout behind `data` is the backend's own
  WeightSpec spec;
  DType input = DType::f32;  // what a producer writes for it
  InputQuant quant = InputQuant::none;
  float input_scale = 1;  // of InputQuant::fixed
  const void* data = nullptr;
  const float* scales = nullptr;  // [n] of fp8, else null; those of groups lie in data
};

struct Norm {
  TensorView gain;  // [H] f32
  float eps = 1e-5f;
};

struct RopeTable {
  const float* cos = nullptr;  // [positions, head_dim / 2]
  const float* sin = nullptr;
  const float* query_scale = nullptr;  // [positions], of rotated queries; null: 1
};

// ---- KV ------------------------------------------------------------------------------------

struct KvView {  // one layer of the pool; the order inside a block is the backend's own
  std::byte* data = nullptr;  // block b lies at data + b * block_bytes; block 0 is scrap
  std::int64_t block_bytes = 0;
  // f32, bf16 or e4m3: the value itself, clamped to +-448 and rounded to the nearest code, ties to
  // even (model-spec 2.5 with a scale of 1). NaN stays NaN.
  DType dtype = DType::bf16;
  int block_tokens = 0, num_kv_heads = 0, head_dim = 0;
  std::int64_t* saturated = nullptr;  // of e4m3: += elements of k and v that were clamped
};

// ---- a step --------------------------------------------------------------------------------

// What the device knows of each running sequence between steps, one entry per slot. Written by
// begin (table) and accept; never by the host.
struct Slots {
  std::int32_t* length = nullptr;       // [slots] tokens whose KV is true
  std::int32_t* pending = nullptr;      // [slots] token to feed next
  std::int32_t* block_table = nullptr;  // [slots, max_blocks]
  int slots = 0, max_blocks = 0;        // the last slot may be scrap, for what pads a step
};

// One step as the host describes it, before the device resolves it. Host arrays at fixed addresses.
struct StepInput {
  std::int32_t* row_id = nullptr;        // [R] >= 0: the id; -1: the slot's pending token
  std::int32_t* cu_rows = nullptr;       // [S+1] rows of sequence s: [cu_rows[s], cu_rows[s+1])
  std::int32_t* slot = nullptr;          // [S]
  std::int32_t* start = nullptr;         // [S] position of its first row; -1: length[slot]
  std::int32_t* cu_logits = nullptr;     // [S+1] logits rows: a suffix of the sequence's rows
  std::int32_t* logits_row = nullptr;    // [E] row
  std::int32_t* table_update = nullptr;  // [U, 3] slot, index, block
  std::int32_t* copy = nullptr;          // [C, 2] source block, target block; none is both
};

// What every stage reads. The ints are launch shapes. The arrays stand at fixed addresses; begin
// fills them.
struct Step {
  int rows = 0, sequences = 0, logits_rows = 0, table_updates = 0;
  std::int32_t* ids = nullptr;                // [R]
  std::int32_t* positions = nullptr;          // [R]
  std::int32_t* sequence = nullptr;           // [R]
  std::int32_t* cu_rows = nullptr;            // [S+1]
  std::int32_t* slot = nullptr;               // [S]
  std::int32_t* cu_logits = nullptr;          // [S+1]
  std::int32_t* logits_row = nullptr;         // [E]
  const std::int32_t* block_table = nullptr;  // [slots, max_blocks]
  int max_blocks = 0;
};

// ---- stages of a layer ---------------------------------------------------------------------
// A producer names the weight that consumes its output: that fixes the output's format, and how it
// is quantised.

// step.{ids, positions, sequence, cu_rows, slot, cu_logits, logits_row} <- input and slots; applies
// the block table updates. Leaves length and pending alone.
struct BeginParams {
  const StepInput& input;
  const Slots& slots;
  const Step& step;
};

// One layer's blocks, whole: target <- source. Before any row of the step is written.
struct CopyBlocksParams {
  const std::int32_t* pairs;  // [count, 2], StepInput::copy
  int count;
  const KvView& kv;
};

struct EmbedParams {
  const Step& step;
  const Weight& table;  // role embed, or a tied lm_head; ids outside it are refused
  TensorView out;       // [R, H] f32
};

// RMSNorm, q k v = x W^T, rotate q and k (half-split pairs), store k and v of its rows.
struct NormQkvRopeStoreParams {
  const Step& step;
  TensorView residual;  // [R, H] f32, only read
  const Norm& norm;
  const Weight& qkv_proj;  // n = (num_heads + 2 num_kv_heads) head_dim
  const RopeTable& rope;
  const KvView& kv;
  TensorView q;  // [R, num_heads * head_dim] f32, rotated
};

// Causal GQA: query head h reads KV head h / (num_heads / num_kv_heads), positions 0 .. its own.
struct AttentionParams {
  const Step& step;
  TensorView q;
  const KvView& kv;
  float scale;             // before the softmax
  const Weight& consumer;  // o_proj
  TensorView out;          // [R, num_heads * head_dim] in consumer.input
  float* out_scale;        // [R] of InputQuant::per_token, else unused
};

struct LinearResidualParams {
  const Step& step;
  TensorView x;          // [R, k] in weight.input, quantised as the weight wants it
  const float* x_scale;  // [R] of InputQuant::per_token, else unused
  const Weight& weight;
  TensorView residual;  // [R, n] f32 += x W^T
};

// RMSNorm, gate and up = x W^T, out = silu(gate) * up.
struct NormGateUpSiluParams {
  const Step& step;
  TensorView residual;  // [R, H] f32, only read
  const Norm& norm;
  const Weight& gate_up_proj;  // n = 2 I: gate rows, then up rows
  const Weight& consumer;      // down_proj
  TensorView out;              // [R, I] in consumer.input
  float* out_scale;            // [R] of InputQuant::per_token, else unused
};

// ---- around the layers ---------------------------------------------------------------------

struct LogitsParams {  // RMSNorm of the logits rows, then the head
  const Step& step;
  TensorView residual;  // [R, H] f32
  const Norm& norm;
  const Weight& lm_head;
  TensorView out;  // [E, vocab] f32
};

// ---- sampling ------------------------------------------------------------------------------

struct LogitBias {
  std::int32_t id = 0;
  float bias = 0;
};

struct TokenCount {  // a token of a sequence, once in its list
  std::int32_t id = 0;
  std::int32_t generated = 0;  // occurrences in the answer; 0: in the prompt only
};

struct SampleRow {        // one logits row
  float temperature = 0;  // 0: the highest logit, the lowest id on ties
  float top_p = 1, min_p = 0;
  std::int32_t top_k = 0;  // 0: all
  // Of the tokens of `count`: a positive logit is divided by repetition_penalty, another multiplied
  // with it; then frequency_penalty * generated and, where generated > 0, presence_penalty are
  // subtracted.
  float repetition_penalty = 1, frequency_penalty = 0, presence_penalty = 0;
  // -1: no log-probabilities; else how many of the highest are listed beside the chosen one's.
  std::int32_t logprobs = -1;
  std::int32_t given = -1;  // >= 0: this id is "chosen" (a prompt token that is only scored)
  // Ranges [begin, end) of the lists of SampleInput, each id in the vocabulary: what is added to
  // logits, the tokens that penalties apply to, the ids that must not be chosen.
  std::int32_t bias_begin = 0, bias_end = 0;
  std::int32_t count_begin = 0, count_end = 0;
  std::int32_t ban_begin = 0, ban_end = 0;
  std::int64_t mask_begin = -1;  // word of SampleInput::mask; -1: all tokens may be chosen
  std::uint64_t seed = 0;
};

struct SampleInput {                  // host arrays
  SampleRow* row = nullptr;           // [E]
  const std::int32_t* ban = nullptr;  // lists of all rows, as are the next two
  const LogitBias* bias = nullptr;
  const TokenCount* count = nullptr;
  const std::uint32_t* mask = nullptr;  // bit t % 32 of a row's word t / 32: t may be chosen
};

struct SampleOutput {              // device image and host image alike
  std::int32_t* id = nullptr;      // [E]
  float* logprob = nullptr;        // [E] of id, natural log, of the unmodified distribution
  std::int32_t* top_id = nullptr;  // [E, kMaxLogprobs] highest first, lowest id on ties
  float* top_logprob = nullptr;    // [E, kMaxLogprobs]
};

// Raw log-probabilities first; then bias, penalties, bans, mask, temperature, top_k, top_p, min_p
// in this order, each on the distribution that the one before left, and ONE draw from hash(seed,
// position of the row). A given row only has its log-probabilities.
struct SampleParams {
  const Step& step;
  TensorView logits;  // [E, vocab] f32
  SampleInput input;
  SampleOutput out;
};

// Of every sequence of the step: length[slot] = position of its last row + 1; if it has logits
// rows, pending[slot] = the id sampled for the last of them.
struct AcceptParams {
  const Step& step;
  const std::int32_t* sampled;  // [E]
  const Slots& slots;
};

}  // namespace mmengine
