// The transformer: embed, layers, final norm and head. run_layer is the one layer of this project.
// Holds views only; the memory is the arena's.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weights.h"

namespace mmengine {

struct LayerBuffers {    // scratch of one layer, reused by all; f32
  TensorView residual;   // [R, H]
  TensorView q;          // [R, num_heads * head_dim]
  TensorView attention;  // [R, num_heads * head_dim]
  TensorView mlp;        // [R, intermediate_size]
  TensorView row_scale;  // [R] of attention, then of mlp, where each row has its own
};

struct LayerSlices {  // the same, before memory exists
  Slice residual, q, attention, mlp, row_scale;
  static LayerSlices plan(const ModelShape& shape, int rows, Layout& layout);
  LayerBuffers bind(const Arena& arena) const;
};

struct LayerConstants {  // what all layers share
  RopeTable rope;
  float scale = 1.0f;  // of q k^T, before the softmax
};

void run_layer(Backend& backend, const Step& step, const LayerWeights& weights,
               const LayerConstants& constants, const KvView& kv, const LayerBuffers& buffers);

class Decoder {
 public:
  Decoder(Backend& backend, const ModelConfig& config, const Weights& weights,
          LayerConstants constants, std::vector<KvView> kv, LayerBuffers buffers);
  // pairs [count, 2]: KV blocks copied in every layer, source to target.
  void copy_blocks(const std::int32_t* pairs, int count) const;
  // step.ids -> residual of every row, its K and V in the cache.
  void forward(const Step& step) const;
  // After forward: out [E, vocab] f32, of step.logits_row.
  void logits(const Step& step, TensorView out) const;

 private:
  Backend& backend_;
  std::vector<LayerWeights> layers_;
  Weight embed_, lm_head_;
  Norm final_norm_;
  LayerConstants constants_;
  std::vector<KvView> kv_;  // of each layer
  LayerBuffers buffers_;
};

}  // namespace mmengine
