// What frames a step: begin resolves ids and positions from the slots, accept moves the slots on.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/ref/launch.h"

namespace mmengine::ref {
namespace {

void check_offsets(const char* name, const std::int32_t* offsets, int count, int end) {
  MM_CHECK(offsets[0] == 0 && offsets[count] == end, "begin", name, ": expected 0 to ", end,
           ", got ", offsets[0], " to ", offsets[count]);
  for (int i = 0; i < count; ++i) {
    MM_CHECK(offsets[i] <= offsets[i + 1], "begin", name, "[", i + 1, "]: expected at least ",
             offsets[i], ", got ", offsets[i + 1]);
  }
}

// The host's description is checked whole before anything is written.
void check_input(const BeginParams& p) {
  const StepInput& in = p.input;
  const Step& step = p.step;
  check_offsets("cu_rows", in.cu_rows, step.sequences, step.rows);
  check_offsets("cu_logits", in.cu_logits, step.sequences, step.logits_rows);
  for (int s = 0; s < step.sequences; ++s) {
    MM_CHECK(in.slot[s] >= 0 && in.slot[s] < p.slots.slots, "begin", "slot[", s,
             "]: expected 0 to ", p.slots.slots - 1, ", got ", in.slot[s]);
    for (std::int32_t e = in.cu_logits[s]; e < in.cu_logits[s + 1]; ++e) {
      MM_CHECK(in.logits_row[e] >= in.cu_rows[s] && in.logits_row[e] < in.cu_rows[s + 1], "begin",
               "logits_row[", e, "]: expected a row of sequence ", s, ", got ", in.logits_row[e]);
    }
  }
  for (std::int64_t u = 0; u < step.table_updates; ++u) {
    const std::int32_t* update = in.table_update + 3 * u;
    MM_CHECK(update[0] >= 0 && update[0] < p.slots.slots && update[1] >= 0 &&
                 update[1] < p.slots.max_blocks && update[2] >= 0,
             "begin", "table_update[", u, "]: expected slot < ", p.slots.slots, ", index < ",
             p.slots.max_blocks, ", a block, got ", update[0], ", ", update[1], ", ", update[2]);
  }
}

}  // namespace

void copy_blocks(const CopyBlocksParams& p) {
  for (int i = 0; i < p.count; ++i) {
    const std::int64_t source = p.pairs[2 * i], target = p.pairs[2 * i + 1];
    MM_CHECK(source > 0 && target > 0 && source != target, "copy_blocks", "pairs[", i,
             "]: expected two blocks, got ", source, " and ", target);
    std::memcpy(p.kv.data + target * p.kv.block_bytes, p.kv.data + source * p.kv.block_bytes,
                static_cast<std::size_t>(p.kv.block_bytes));
  }
}

void begin(const BeginParams& p, int block_tokens) {
  check_input(p);
  const StepInput& in = p.input;
  const Step& step = p.step;
  for (std::int64_t u = 0; u < step.table_updates; ++u) {
    const std::int32_t* update = in.table_update + 3 * u;
    p.slots.block_table[std::int64_t{update[0]} * p.slots.max_blocks + update[1]] = update[2];
  }
  for (std::int32_t s = 0; s < step.sequences; ++s) {
    const std::int32_t slot = in.slot[s];
    const std::int32_t start = in.start[s] >= 0 ? in.start[s] : p.slots.length[slot];
    const std::int64_t end = std::int64_t{start} + in.cu_rows[s + 1] - in.cu_rows[s];
    const std::int64_t room = std::int64_t{p.slots.max_blocks} * block_tokens;
    MM_CHECK(start >= 0 && end <= room, "begin", "sequence ", s, ": expected positions 0 to ",
             room - 1, ", got ", start, " to ", end - 1);
    step.slot[s] = slot;
    for (std::int32_t r = in.cu_rows[s]; r < in.cu_rows[s + 1]; ++r) {
      step.ids[r] = in.row_id[r] >= 0 ? in.row_id[r] : p.slots.pending[slot];
      step.positions[r] = start + (r - in.cu_rows[s]);
      step.sequence[r] = s;
    }
  }
  std::copy_n(in.cu_rows, step.sequences + 1, step.cu_rows);
  std::copy_n(in.cu_logits, step.sequences + 1, step.cu_logits);
  std::copy_n(in.logits_row, step.logits_rows, step.logits_row);
}

void accept(const AcceptParams& p) {
  const Step& step = p.step;
  for (std::int32_t s = 0; s < step.sequences; ++s) {
    if (step.cu_rows[s] == step.cu_rows[s + 1]) continue;
    p.slots.length[step.slot[s]] = step.positions[step.cu_rows[s + 1] - 1] + 1;
    if (step.cu_logits[s + 1] > step.cu_logits[s]) {
      p.slots.pending[step.slot[s]] = p.sampled[step.cu_logits[s + 1] - 1];
    }
  }
}

}  // namespace mmengine::ref
