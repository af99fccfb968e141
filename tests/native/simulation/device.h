// A device with the fake model in it: KV pool, slots and the stages of a step. begin and accept are
// those of kernels/ref; everything else reads and writes the pool through the slots' block tables.
#pragma once

#include <vector>

#include "runtime/batch.h"
#include "simulation/fake_model.h"

namespace mmengine::simulation {

class Device {
 public:
  Device(const StepLimits& limits, int num_blocks, int block_tokens);

  void begin(const Batch& batch);  // resolves ids and positions, writes nothing to the pool
  void copy_blocks(const Batch& batch);
  void forward();  // all rows of a layer are written before one of them reads
  // Samples and accepts; [E] ids, valid until the next step.
  const std::vector<std::int32_t>& sample(const SampleInput& input);

  const Step& step() const { return step_; }
  int length(int slot) const { return slots_.length[slot]; }
  int pending(int slot) const { return slots_.pending[slot]; }
  // The block that holds this position of the slot, as the device sees it.
  std::int32_t block_at(int slot, int position) const {
    return slots_.block_table[slot * slots_.max_blocks + position / block_tokens_];
  }
  const Cell& cell(std::int32_t block, int offset) const {
    return pool_[static_cast<std::size_t>(block * block_tokens_ + offset)];
  }

 private:
  Cell& at(int slot, int position);
  int slot_of(int row) const { return step_.slot[step_.sequence[row]]; }

  int block_tokens_;
  std::vector<Cell> pool_;
  std::vector<Hash> hidden_;  // [R]
  Arena arena_;
  Step step_;
  Slots slots_;
  std::vector<std::int32_t> sampled_;
};

// The lists behind row e of a sample input.
Adjustment adjustment_of(const SampleInput& input, int e);

}  // namespace mmengine::simulation
