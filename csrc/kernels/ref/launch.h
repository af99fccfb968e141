// Scalar kernels: the specification that every other backend is compared with. Row-major weights
// as stored, f32 arithmetic; sums of squares and of softmax weights are kept in double.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/params.h"

namespace mmengine::ref {

// ---- one vector ----------------------------------------------------------------------------

// out[i] = x[i] / sqrt(mean(x^2) + eps) * gain[i]
void rms_norm(const float* x, const float* gain, float eps, std::int64_t n, float* out);
// Rotates the pairs (j, j + head_dim / 2) of one head by the angles of one position.
void rope(float* head, const float* cos, const float* sin, std::int64_t head_dim);
// gate / (1 + exp(-gate)) * up
float silu_mul(float gate, float up);
// In place: x[n] as `consumer` wants it (InputQuant); returns the scale of its outputs that is not
// among the weight's, else 1.
float quantise_input(float* x, std::int64_t n, const Weight& consumer);

// ---- weights -------------------------------------------------------------------------------

// Element [row, k] of a row-major matrix: without its row scale, with the scale of its group.
float weight_element(const Weight& weight, std::int64_t row, std::int64_t k);
// out[m, n] = (x_scale[m] scale[n]) * sum_k x[m, k] w[n, k]: ONE chain of fused multiply-adds in
// ascending k that starts from 0. x_scale may be null: 1.
// Of int8 and int4 the product of codes, group by group: gemm_groups.
void gemm(TensorView x, const float* x_scale, const Weight& weight, TensorView out);

// ---- weights in groups ---------------------------------------------------------------------

// Row-major like the rest: codes [n, groups * kGroup], one a byte (int8: signed); then scales
// [n, groups] as f16; then, of int4, minima [n, groups] as f16.
struct GroupRow {
  const std::uint8_t* codes;
  const std::uint16_t* scales;
  const std::uint16_t* minima;  // null for int8
};
std::size_t group_bytes(const WeightSpec& spec);
GroupRow group_row(const Weight& weight, std::int64_t row);

// Codes of count <= kGroup values, kGroup of them: those beyond count are 0. Returns the scale s.
//   a = max|x|, s = a / 127, code = x * (127 / a) rounded, ties to even, clamped to +-127
//   a < 2^-100: s = 0, codes 0;  a NaN or an infinity in x: s = NaN, codes 0
float quantise_group(const float* x, std::int64_t count, std::int8_t* codes);
// out[m, n], a chain over the groups g in ascending order that starts from 0, with the codes c and
// the scales s of the row of x, the codes, scales d and minima m of the row of the weight:
//   sum = fma(float(sum c_w c), d s, sum), then for int4: sum = fma(m, s float(sum c), sum)
// Sums of codes are exact.
void gemm_groups(TensorView x, const Weight& weight, TensorView out);

// ---- a step --------------------------------------------------------------------------------

void copy_blocks(const CopyBlocksParams& p);
void begin(const BeginParams& p, int block_tokens);
void embed(const EmbedParams& p);
// qkv: [R, (num_heads + 2 num_kv_heads) head_dim], rotated in place.
void rope_store(const NormQkvRopeStoreParams& p, TensorView qkv);
// scores: room for as many floats as a sequence has positions.
void attention(const AttentionParams& p, float* scores);
void accept(const AcceptParams& p);

// Where position `position` of a sequence lies: element (kv_head, 0) of its K; V follows all K of
// the block at value_offset.
std::byte* kv_address(const KvView& kv, const Step& step, std::int32_t sequence,
                      std::int64_t position, std::int64_t kv_head);
std::int64_t value_offset_bytes(const KvView& kv);

// ---- sampling, used by all CPU backends ----------------------------------------------------

struct SampleScratch {
  struct Candidate {
    float logit;
    std::int32_t id;
  };
  std::vector<Candidate> candidates, changed;  // changed: logits as they were
  std::vector<float> weights;
};

// Logits row e of the step. NaN logits have probability 0; a row without any number gives id 0 and
// log-probability NaN. Unused places of top_id and top_logprob get -1 and NaN.
void sample_row(const SampleParams& p, std::int64_t e, SampleScratch& scratch);
// Uniform in [0, 1), 53 bits: two rounds of the splitmix64 finaliser over seed and position.
double uniform(std::uint64_t seed, std::int64_t position);

}  // namespace mmengine::ref
