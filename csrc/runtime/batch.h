// Batch: a Schedule flattened into one host image with fixed offsets, which the device copies as it
// is. StepSlices are the arrays that the device keeps of a step and of its slots.
#pragma once

#include "backend/buffer.h"
#include "runtime/sequence.h"

namespace mmengine {

// From cu_rows to row_id, which are copied at once as far as they are used, then table_update, of
// which most steps use nothing.
struct StepInputSlices {
  static StepInputSlices plan(const StepLimits& limits, Layout& layout);
  StepInput bind(const Arena& arena) const;
  Slice row_id, cu_rows, slot, start, cu_logits, logits_row, table_update, copy;
};

struct StepSlices {
  static StepSlices plan(const StepLimits& limits, Layout& layout);
  Step bind_step(const Arena& arena) const;
  Slots bind_slots(const Arena& arena) const;
  Slice ids, positions, sequence, cu_rows, slot, cu_logits, logits_row;
  Slice length, pending, block_table;
};

struct Batch {
  int rows = 0, sequences = 0, logits_rows = 0, table_updates = 0, copies = 0;
  StepInput input;
};

// Whether each sequence has one row and one of logits.
bool is_even(const Batch& batch);
// The same and sequences of one row behind it, `rows` in all: token 0 of the scrap slot, the last
// one, whose blocks are all the scrap block. What belongs to the others does not change by it.
Batch padded(const Batch& batch, int rows, const Slots& slots);

// Fills `input` from the schedule. The id that the host does not know becomes "the slot's pending
// token".
Batch make_batch(const Schedule& schedule, const StepLimits& limits, const StepInput& input);

}  // namespace mmengine
