#include "simulation/device.h"

#include <algorithm>

#include "kernels/ref/launch.h"

namespace mmengine::simulation {

Device::Device(const StepLimits& limits, int num_blocks, int block_tokens)
    : block_tokens_(block_tokens),
      pool_(static_cast<std::size_t>(num_blocks + 1) * static_cast<std::size_t>(block_tokens)),
      hidden_(static_cast<std::size_t>(limits.rows)) {
  Layout layout;
  const StepSlices slices = StepSlices::plan(limits, layout);
  arena_ = Arena(allocate_host(layout.bytes()));
  step_ = slices.bind_step(arena_);
  slots_ = slices.bind_slots(arena_);
}

Cell& Device::at(int slot, int position) {
  const std::int32_t block = block_at(slot, position);
  return pool_[static_cast<std::size_t>(block * block_tokens_ + position % block_tokens_)];
}

void Device::begin(const Batch& batch) {
  step_.rows = batch.rows;
  step_.sequences = batch.sequences;
  step_.logits_rows = batch.logits_rows;
  step_.table_updates = batch.table_updates;
  ref::begin({batch.input, slots_, step_}, block_tokens_);
}

void Device::copy_blocks(const Batch& batch) {
  for (int i = 0; i < batch.copies; ++i) {
    const std::int32_t* pair = batch.input.copy + 2 * i;
    const auto source = pool_.begin() + std::ptrdiff_t{pair[0]} * block_tokens_;
    std::copy_n(source, block_tokens_, pool_.begin() + std::ptrdiff_t{pair[1]} * block_tokens_);
  }
}

void Device::forward() {
  for (int r = 0; r < step_.rows; ++r) {
    at(slot_of(r), step_.positions[r]).first = embed(step_.ids[r], step_.positions[r]);
  }
  for (int r = 0; r < step_.rows; ++r) {
    Hash hidden = 0;
    for (int p = 0; p <= step_.positions[r]; ++p) hidden = attend(hidden, at(slot_of(r), p).first);
    hidden_[static_cast<std::size_t>(r)] = hidden;
  }
  for (int r = 0; r < step_.rows; ++r) {
    at(slot_of(r), step_.positions[r]).second = hidden_[static_cast<std::size_t>(r)];
  }
  for (int r = 0; r < step_.rows; ++r) {
    Hash hidden = 0;
    for (int p = 0; p <= step_.positions[r]; ++p) hidden = attend(hidden, at(slot_of(r), p).second);
    hidden_[static_cast<std::size_t>(r)] = hidden;
  }
}

const std::vector<std::int32_t>& Device::sample(const SampleInput& input) {
  sampled_.clear();
  for (int e = 0; e < step_.logits_rows; ++e) {
    const std::int32_t row = step_.logits_row[e];
    const std::int32_t given = input.row[e].given;
    sampled_.push_back(given >= 0 ? given
                                  : pick(hidden_[static_cast<std::size_t>(row)],
                                         step_.positions[row], adjustment_of(input, e)));
  }
  ref::accept({step_, sampled_.data(), slots_});
  return sampled_;
}

Adjustment adjustment_of(const SampleInput& input, int e) {
  const SampleRow& row = input.row[e];
  Adjustment a;
  a.temperature = row.temperature;
  a.repetition = row.repetition_penalty;
  a.frequency = row.frequency_penalty;
  a.presence = row.presence_penalty;
  a.seed = row.seed;
  for (int i = row.bias_begin; i < row.bias_end; ++i)
    a.bias[input.bias[i].id] += input.bias[i].bias;
  for (int i = row.count_begin; i < row.count_end; ++i) {
    a.listed[input.count[i].id] = true;
    a.generated[input.count[i].id] += input.count[i].generated;
  }
  for (int i = row.ban_begin; i < row.ban_end; ++i) a.banned[input.ban[i]] = true;
  if (row.mask_begin >= 0) a.allowed = input.mask[row.mask_begin];
  return a;
}

}  // namespace mmengine::simulation
