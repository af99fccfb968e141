#include "model/decoder.h"

#include <utility>

namespace mmengine {

LayerSlices LayerSlices::plan(const ModelShape& shape, int rows, Layout& layout) {
  const std::int64_t heads = shape.num_heads * shape.head_dim;
  LayerSlices slices;
  slices.residual = layout.add("residual", DType::f32, {rows, shape.hidden_size});
  slices.q = layout.add("q", DType::f32, {rows, heads});
  slices.attention = layout.add("attention", DType::f32, {rows, heads});
  slices.mlp = layout.add("mlp", DType::f32, {rows, shape.intermediate_size});
  slices.row_scale = layout.add("row_scale", DType::f32, {rows});
  return slices;
}

LayerBuffers LayerSlices::bind(const Arena& arena) const {
  return {arena[residual], arena[q], arena[attention], arena[mlp], arena[row_scale]};
}

void run_layer(Backend& backend, const Step& step, const LayerWeights& w, const LayerConstants& c,
               const KvView& kv, const LayerBuffers& all) {
  const int r = step.rows;
  const TensorView residual = all.residual.rows(r), q = all.q.rows(r), mlp = all.mlp.rows(r);
  const TensorView attention = all.attention.rows(r);
  auto* scale = all.row_scale.as<float>();
  backend.norm_qkv_rope_store({step, residual, w.input_norm, w.qkv_proj, c.rope, kv, q});
  backend.attention({step, q, kv, c.scale, w.o_proj, attention, scale});
  backend.linear_residual({step, attention, scale, w.o_proj, residual});
  backend.norm_gate_up_silu({step, residual, w.post_norm, w.gate_up_proj, w.down_proj, mlp, scale});
  backend.linear_residual({step, mlp, scale, w.down_proj, residual});
}

Decoder::Decoder(Backend& backend, const ModelConfig& config, const Weights& weights,
                 LayerConstants constants, std::vector<KvView> kv, LayerBuffers buffers)
    : backend_(backend),
      layers_(weights.layers(config.num_layers)),
      embed_(weights.weight(weights.has("embed_tokens") ? "embed_tokens" : "lm_head")),
      lm_head_(weights.weight("lm_head")),
      final_norm_(weights.norm("norm")),
      constants_(constants),
      kv_(std::move(kv)),
      buffers_(buffers) {}

void Decoder::copy_blocks(const std::int32_t* pairs, int count) const {
  for (const KvView& kv : kv_) backend_.copy_blocks({pairs, count, kv});
}

void Decoder::forward(const Step& step) const {
  backend_.embed({step, embed_, buffers_.residual.rows(step.rows)});
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    run_layer(backend_, step, layers_[l], constants_, kv_[l], buffers_);
  }
}

void Decoder::logits(const Step& step, TensorView out) const {
  backend_.logits({step, buffers_.residual.rows(step.rows), final_norm_, lm_head_, out});
}

}  // namespace mmengine
