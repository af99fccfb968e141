#include "runtime/rank.h"

#include <cmath>
#include <utility>

#include "model/rope.h"

namespace mmengine {
namespace {

std::vector<KvView> layer_views(const Plan& plan, const Arena& arena) {
  const TensorView pool = arena[plan.kv_blocks];
  std::vector<KvView> views;
  for (std::int64_t l = 0; l < plan.kv.num_layers; ++l) {
    KvView view;
    view.data = pool.rows(l, 1).as<std::byte>();
    view.block_bytes = static_cast<std::int64_t>(plan.kv_layer_bytes);
    view.dtype = plan.kv.dtype;
    view.block_tokens = plan.kv.block_tokens;
    view.num_kv_heads = static_cast<int>(plan.kv.num_kv_heads);
    view.head_dim = static_cast<int>(plan.kv.head_dim);
    view.saturated = arena[plan.kv_saturated].as<std::int64_t>();
    views.push_back(view);
  }
  return views;
}

RopeTable upload_rope(const Plan& plan, const ModelConfig& config, const Arena& arena,
                      Backend& backend) {
  const TensorView cos = arena[plan.rope_cos], sin = arena[plan.rope_sin];
  const auto count = static_cast<std::size_t>(cos.shape.count());
  std::vector<float> host_cos(count), host_sin(count);
  fill_rope_table(config.rope, config.head_dim, plan.limits.context_tokens, host_cos.data(),
                  host_sin.data());
  backend.upload(cos.data, host_cos.data(), count * sizeof(float));
  backend.upload(sin.data, host_sin.data(), count * sizeof(float));
  RopeTable table{cos.as<float>(), sin.as<float>()};
  if (config.rope.scales_queries()) {
    std::vector<float> scale(static_cast<std::size_t>(plan.limits.context_tokens));
    fill_query_scale(config.rope, plan.limits.context_tokens, scale.data());
    const TensorView view = arena[plan.query_scale];
    backend.upload(view.data, scale.data(), scale.size() * sizeof(float));
    table.query_scale = view.as<float>();
  }
  return table;
}

}  // namespace

Rank::Rank(const Plan& plan, const ModelConfig& config, const Checkpoint& checkpoint,
           std::unique_ptr<Backend> backend, const LoadOptions& options)
    : backend_(std::move(backend)),
      device_(backend_->allocate(plan.device.bytes())),
      weights_(
          std::make_unique<Weights>(plan.decoder, config, checkpoint, *backend_, device_, options)),
      step_(plan.step.bind_step(device_)),
      slots_(plan.step.bind_slots(device_)),
      input_(plan.step_input.bind(device_)),
      output_(plan.sample_output.bind(device_)),
      logits_(device_[plan.logits]),
      kv_saturated_(device_[plan.kv_saturated].as<std::int64_t>()) {
  backend_->set_scratch(device_[plan.scratch]);
  const std::int64_t none = 0;
  backend_->upload(kv_saturated_, &none, sizeof none);
  const LayerConstants constants{upload_rope(plan, config, device_, *backend_),
                                 1.0f / std::sqrt(static_cast<float>(config.head_dim))};
  decoder_ = std::make_unique<Decoder>(*backend_, config, *weights_, constants,
                                       layer_views(plan, device_), plan.layer.bind(device_));
  graphs_ = std::make_unique<GraphCache>(*backend_, plan.limits.sequences, [&](int rows) {
    step_.rows = step_.sequences = step_.logits_rows = rows;
    pass();
  });
}

StepInput Rank::upload(const Batch& batch) {
  const auto copy = [&](std::int32_t* to, const std::int32_t* begin, const std::int32_t* end) {
    backend_->upload(to, begin, static_cast<std::size_t>(end - begin) * sizeof(*begin));
  };
  const StepInput& from = batch.input;
  copy(input_.cu_rows, from.cu_rows, from.row_id + batch.rows);  // all that lies between them
  copy(input_.table_update, from.table_update, from.table_update + 3 * batch.table_updates);
  return input_;
}

void Rank::set_shapes(const Batch& batch) {
  step_.rows = batch.rows;
  step_.sequences = batch.sequences;
  step_.logits_rows = batch.logits_rows;
  step_.table_updates = batch.table_updates;
}

void Rank::pass() {
  decoder_->forward(step_);
  if (step_.logits_rows > 0) decoder_->logits(step_, logits_.rows(step_.logits_rows));
}

void Rank::forward(const Batch& batch) {
  const int rows = is_even(batch) ? graphs_->padded(batch.rows) : 0;
  const Batch all = rows > 0 ? padded(batch, rows, slots_) : batch;
  set_shapes(all);
  const StepInput input = upload(all);
  if (batch.copies > 0) decoder_->copy_blocks(input.copy, batch.copies);
  backend_->begin({input, slots_, step_});
  if (rows > 0) {
    graphs_->replay(rows);
  } else {
    pass();
  }
  set_shapes(batch);  // nobody samples what pads it
}

void Rank::sample(const Batch& batch, const SampleInput& input, const SampleOutput& out) {
  const auto rows = static_cast<std::size_t>(batch.logits_rows);
  if (rows > 0) backend_->sample({step_, logits_.rows(batch.logits_rows), input, output_});
  backend_->accept({step_, output_.id, slots_});
  backend_->download(out.id, output_.id, rows * sizeof(std::int32_t));
  backend_->download(out.logprob, output_.logprob, rows * sizeof(float));
  backend_->download(out.top_id, output_.top_id, rows * kMaxLogprobs * sizeof(std::int32_t));
  backend_->download(out.top_logprob, output_.top_logprob, rows * kMaxLogprobs * sizeof(float));
}

void Rank::download_kv_saturated(std::int64_t* host) {
  backend_->download(host, kv_saturated_, sizeof *host);
}

void Rank::download_logits(const Batch& batch, float* host) {
  const TensorView view = logits_.rows(batch.logits_rows);
  backend_->download(host, view.data, static_cast<std::size_t>(view.shape.count()) * sizeof(float));
}

}  // namespace mmengine
