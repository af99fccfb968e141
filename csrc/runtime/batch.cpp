#include "runtime/batch.h"

#include "base/check.h"

namespace mmengine {
namespace {

// A step sends at most one new block for each row, and one more where a sequence starts in a block.
// A sequence may begin with all the blocks of a cached prefix.
std::int64_t max_table_updates(const StepLimits& limits) {
  return std::int64_t{limits.sequences} * limits.max_blocks;
}

}  // namespace

StepInputSlices StepInputSlices::plan(const StepLimits& limits, Layout& layout) {
  const std::int64_t rows = limits.rows, sequences = limits.sequences;
  StepInputSlices s;
  s.cu_rows = layout.add("step_input.cu_rows", DType::i32, {sequences + 1});
  s.slot = layout.add("step_input.slot", DType::i32, {sequences});
  s.start = layout.add("step_input.start", DType::i32, {sequences});
  s.cu_logits = layout.add("step_input.cu_logits", DType::i32, {sequences + 1});
  s.copy = layout.add("step_input.copy", DType::i32, {sequences, 2});
  s.logits_row = layout.add("step_input.logits_row", DType::i32, {limits.logits_rows});
  s.row_id = layout.add("step_input.row_id", DType::i32, {rows});
  s.table_update =
      layout.add("step_input.table_update", DType::i32, {max_table_updates(limits), 3});
  return s;
}

StepInput StepInputSlices::bind(const Arena& arena) const {
  auto ints = [&](const Slice& slice) { return arena[slice].as<std::int32_t>(); };
  return {ints(row_id),    ints(cu_rows),    ints(slot),         ints(start),
          ints(cu_logits), ints(logits_row), ints(table_update), ints(copy)};
}

StepSlices StepSlices::plan(const StepLimits& limits, Layout& layout) {
  const std::int64_t rows = limits.rows, sequences = limits.sequences;
  StepSlices s;
  s.ids = layout.add("step.ids", DType::i32, {rows});
  s.positions = layout.add("step.positions", DType::i32, {rows});
  s.sequence = layout.add("step.sequence", DType::i32, {rows});
  s.cu_rows = layout.add("step.cu_rows", DType::i32, {sequences + 1});
  s.slot = layout.add("step.slot", DType::i32, {sequences});
  s.cu_logits = layout.add("step.cu_logits", DType::i32, {sequences + 1});
  s.logits_row = layout.add("step.logits_row", DType::i32, {limits.logits_rows});
  const std::int64_t slots = sequences + 1;  // one more for what pads a step; its table is zeros
  s.length = layout.add("slots.length", DType::i32, {slots});
  s.pending = layout.add("slots.pending", DType::i32, {slots});
  s.block_table = layout.add("slots.block_table", DType::i32, {slots, limits.max_blocks});
  return s;
}

Step StepSlices::bind_step(const Arena& arena) const {
  auto ints = [&](const Slice& slice) { return arena[slice].as<std::int32_t>(); };
  Step step;
  step.ids = ints(ids);
  step.positions = ints(positions);
  step.sequence = ints(sequence);
  step.cu_rows = ints(cu_rows);
  step.slot = ints(slot);
  step.cu_logits = ints(cu_logits);
  step.logits_row = ints(logits_row);
  step.block_table = ints(block_table);
  step.max_blocks = static_cast<int>(block_table.shape[1]);
  return step;
}

Slots StepSlices::bind_slots(const Arena& arena) const {
  auto ints = [&](const Slice& slice) { return arena[slice].as<std::int32_t>(); };
  return {ints(length), ints(pending), ints(block_table), static_cast<int>(length.shape[0]),
          static_cast<int>(block_table.shape[1])};
}

Batch make_batch(const Schedule& schedule, const StepLimits& limits, const StepInput& input) {
  Batch batch;
  batch.input = input;
  input.cu_rows[0] = input.cu_logits[0] = 0;
  for (const Span& span : schedule.spans) {
    const Sequence& sequence = *span.sequence;
    const int s = batch.sequences++;
    MM_CHECK(batch.rows + span.rows <= limits.rows && batch.sequences <= limits.sequences, "batch",
             "the schedule passes the limits of ", limits.rows, " rows and ", limits.sequences,
             " sequences");
    input.slot[s] = sequence.slot;
    input.start[s] = span.start == kFromSlot ? -1 : span.start;
    for (int i = 0; i < span.rows; ++i) {
      const bool pending = span.start == kFromSlot;
      input.row_id[batch.rows + i] =
          pending ? -1 : sequence.tokens[static_cast<std::size_t>(span.start + i)];
    }
    for (int i = span.first_logits; i < span.rows; ++i) {
      MM_CHECK(batch.logits_rows < limits.logits_rows, "batch", "the schedule passes the limit of ",
               limits.logits_rows, " logits rows");
      input.logits_row[batch.logits_rows++] = batch.rows + i;
    }
    for (int index = span.table_begin; index < sequence.table_sent; ++index) {
      MM_CHECK(batch.table_updates < max_table_updates(limits), "batch", "too many new blocks");
      std::int32_t* update = input.table_update + 3 * batch.table_updates++;
      update[0] = sequence.slot;
      update[1] = index;
      update[2] = sequence.block_table[static_cast<std::size_t>(index)];
    }
    batch.rows += span.rows;
    input.cu_rows[s + 1] = batch.rows;
    input.cu_logits[s + 1] = batch.logits_rows;
  }
  for (const BlockCopy& copy : schedule.copies) {
    MM_CHECK(batch.copies < limits.sequences, "batch", "too many blocks to copy");
    input.copy[2 * batch.copies] = copy.source;
    input.copy[2 * batch.copies + 1] = copy.target;
    ++batch.copies;
  }
  return batch;
}

bool is_even(const Batch& batch) {
  return batch.rows == batch.sequences && batch.rows == batch.logits_rows;
}

Batch padded(const Batch& batch, int rows, const Slots& slots) {
  MM_CHECK(is_even(batch) && rows >= batch.rows, "batch", "cannot be padded to ", rows, " rows");
  Batch all = batch;
  all.rows = all.sequences = all.logits_rows = rows;
  for (int r = batch.rows; r < rows; ++r) {
    all.input.row_id[r] = all.input.start[r] = 0;
    all.input.slot[r] = slots.slots - 1;
    all.input.logits_row[r] = r;
    all.input.cu_rows[r + 1] = all.input.cu_logits[r + 1] = r + 1;
  }
  return all;
}

}  // namespace mmengine
