// RopeConfig: how positions become angles, and its reading from both config layouts. Plain RoPE,
// YaRN (Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models") as
// transformers resolves its parameters (model-spec 1.1, 1.3), or the scaling of Llama 3.1 as Meta's
// reference code and transformers have it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mmengine {

class Fields;

enum class RopeType : std::uint8_t { plain, yarn, llama3 };

// As in config.json: "default", "yarn", "llama3".
const char* rope_type_name(RopeType type);

struct RopeConfig {
  RopeType type = RopeType::plain;
  double theta = 1e4;
  double original_context = 0;  // tokens the model was trained on before it was stretched; 0: plain
  double factor = 1.0;          // how far it is stretched
  // YaRN: rotations in the original context at the borders of the blend, which may be rounded to
  // whole pairs; attention_factor is multiplied into cos and sin, so twice into the scores.
  double beta_fast = 32, beta_slow = 1;
  bool truncate = true;
  double attention_factor = 1.0;
  // Llama 3: rotations in the original context at the borders of the blend.
  double low_freq_factor = 1, high_freq_factor = 4;
  // Queries at position p are multiplied by 1 + beta ln(1 + floor(p / scaling_context)), as in
  // Llama 4; beta 0: they are not.
  double scaling_beta = 0, scaling_context = 0;
  bool scales_queries() const { return scaling_beta != 0; }
  bool operator==(const RopeConfig&) const = default;
};

// config.json: rope_theta, rope_parameters and the older rope_scaling. `ministral`: the class of
// transformers that has a scaled embedding by default and multiplies queries. The one config that
// was published with a wrong attention factor, Medium 3.5's first, is repaired with a warning.
RopeConfig read_hf_rope(const Fields& fields, bool ministral, std::vector<std::string>& warnings);

// params.json: rope_theta, yarn and llama_4_scaling. Where these words cannot say what an HF config
// says, an engine directory has yarn.attention_factor, yarn.truncate and llama_3_scaling, an object
// of the four numbers of rope_type "llama3", beside them.
RopeConfig read_mistral_rope(const Fields& fields);

}  // namespace mmengine
