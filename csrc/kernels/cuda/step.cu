// What frames a step: begin checks what the host describes and resolves ids and positions from the
// slots (one block of 512 threads), accept moves the slots on, copy_blocks copies whole pages.
// Limits: 64 registers, 256 bytes of shared memory. Never run on a device.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/launch.h"

namespace mmengine::cuda {
namespace {

constexpr int kThreads = 512;

// What is wrong, first by kind, then by index: every thread keeps its first, the block's is told.
struct Finding {
  static constexpr std::uint64_t kNone = ~std::uint64_t{0};
  std::uint64_t key = kNone;
  std::int32_t a = 0, b = 0, c = 0;
};

MM_DEVICE void note(Finding& first, FaultKind kind, int index, std::int32_t a, std::int32_t b,
                    std::int32_t c = 0) {
  const auto key = static_cast<std::uint64_t>(kind) << 32 | static_cast<std::uint32_t>(index);
  if (key < first.key) first = {key, a, b, c};
}

// Whether any thread has found something.
MM_DEVICE bool tell(const Finding& own, Fault* fault) {
  auto* keys = shared_memory<std::uint64_t>();
  std::uint64_t first = own.key;
  for (int step = 16; step > 0; step /= 2) {
    const std::uint64_t other = shuffle_xor(first, step);
    if (other < first) first = other;
  }
  block_barrier();
  if (lane_index() == 0) keys[warp_index()] = first;
  block_barrier();
  for (int w = 0; w < kThreads / 32; ++w) {
    if (keys[w] < first) first = keys[w];
  }
  if (first == Finding::kNone) return false;
  if (own.key == first) {
    report(fault, static_cast<FaultKind>(first >> 32), static_cast<std::int32_t>(first), own.a,
           own.b, own.c);
  }
  return true;
}

MM_DEVICE void check_offsets(Finding& found, FaultKind ends, FaultKind order,
                             const std::int32_t* offsets, int count, int end) {
  if (thread_index() == 0 && (offsets[0] != 0 || offsets[count] != end)) {
    note(found, ends, 0, end, offsets[0], offsets[count]);
  }
  for (int i = thread_index(); i < count; i += kThreads) {
    if (offsets[i] > offsets[i + 1]) note(found, order, i + 1, offsets[i], offsets[i + 1]);
  }
}

struct Begin {
  StepInput in;
  Slots slots;
  Step step;
  Fault* fault;
};

MM_DEVICE std::int32_t start_of(const Begin& p, int s) {
  return p.in.start[s] >= 0 ? p.in.start[s] : p.slots.length[p.in.slot[s]];
}

// Offsets are right already.
MM_DEVICE void check_input(Finding& found, const Begin& p) {
  const StepInput& in = p.in;
  for (int s = thread_index(); s < p.step.sequences; s += kThreads) {
    const std::int32_t slot = in.slot[s];
    if (slot < 0 || slot >= p.slots.slots) {
      note(found, FaultKind::slot, s, p.slots.slots - 1, slot);
      continue;
    }
    for (std::int32_t e = in.cu_logits[s]; e < in.cu_logits[s + 1]; ++e) {
      const std::int32_t row = in.logits_row[e];
      if (row < in.cu_rows[s] || row >= in.cu_rows[s + 1]) {
        note(found, FaultKind::logits_row, e, s, row);
      }
    }
    const std::int64_t start = start_of(p, s);
    const std::int64_t end = start + in.cu_rows[s + 1] - in.cu_rows[s];
    const std::int64_t room = std::int64_t{p.slots.max_blocks} * kBlockTokens;
    if (start < 0 || end > room) {
      note(found, FaultKind::positions, s, static_cast<std::int32_t>(room - 1),
           static_cast<std::int32_t>(start), static_cast<std::int32_t>(end - 1));
    }
  }
  for (int u = thread_index(); u < p.step.table_updates; u += kThreads) {
    const std::int32_t* update = in.table_update + std::int64_t{3} * u;
    if (update[0] < 0 || update[0] >= p.slots.slots || update[1] < 0 ||
        update[1] >= p.slots.max_blocks || update[2] < 0) {
      note(found, FaultKind::table_update, u, update[0], update[1], update[2]);
    }
  }
}

// The last s with offsets[s] <= row.
MM_DEVICE int sequence_of(const std::int32_t* offsets, int count, int row) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (offsets[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// budget: begin_kernel 40 registers 256 shared; needs none
MM_KERNEL(kThreads)
void begin_kernel(Begin p) {
  const StepInput& in = p.in;
  const Step& step = p.step;
  Finding found;
  check_offsets(found, FaultKind::cu_rows_ends, FaultKind::cu_rows_order, in.cu_rows,
                step.sequences, step.rows);
  check_offsets(found, FaultKind::cu_logits_ends, FaultKind::cu_logits_order, in.cu_logits,
                step.sequences, step.logits_rows);
  if (tell(found, p.fault)) return;
  check_input(found, p);
  if (tell(found, p.fault)) return;

  // A thread has whole slots, so that of several updates of one place the last stands.
  for (int u = 0; u < step.table_updates; ++u) {
    const std::int32_t* update = in.table_update + std::int64_t{3} * u;
    if (update[0] % kThreads != thread_index()) continue;
    p.slots.block_table[std::int64_t{update[0]} * p.slots.max_blocks + update[1]] = update[2];
  }
  for (int r = thread_index(); r < step.rows; r += kThreads) {
    const int s = sequence_of(in.cu_rows, step.sequences, r);
    step.ids[r] = in.row_id[r] >= 0 ? in.row_id[r] : p.slots.pending[in.slot[s]];
    step.positions[r] = start_of(p, s) + (r - in.cu_rows[s]);
    step.sequence[r] = s;
  }
  for (int s = thread_index(); s <= step.sequences; s += kThreads) {
    step.cu_rows[s] = in.cu_rows[s];
    step.cu_logits[s] = in.cu_logits[s];
    if (s < step.sequences) step.slot[s] = in.slot[s];
  }
  for (int e = thread_index(); e < step.logits_rows; e += kThreads) {
    step.logits_row[e] = in.logits_row[e];
  }
}

// budget: accept_kernel 24 registers 0 shared; needs none
MM_KERNEL(kThreads)
void accept_kernel(Step step, const std::int32_t* sampled, Slots slots) {
  const int s = block_x() * kThreads + thread_index();
  if (s >= step.sequences || step.cu_rows[s] == step.cu_rows[s + 1]) return;
  const std::int32_t slot = step.slot[s];
  slots.length[slot] = step.positions[step.cu_rows[s + 1] - 1] + 1;
  if (step.cu_logits[s + 1] > step.cu_logits[s]) {
    slots.pending[slot] = sampled[step.cu_logits[s + 1] - 1];
  }
}

struct alignas(16) Chunk {
  std::uint32_t words[4];
};

// A thread has the same 16 bytes of every pair, so pairs are done in order.
// budget: copy_blocks_kernel 32 registers 0 shared; needs none
MM_KERNEL(kThreads)
void copy_blocks_kernel(const std::int32_t* pairs, int count, std::byte* pages,
                        std::int64_t page_bytes, Fault* fault) {
  const std::int64_t offset =
      (std::int64_t{block_x()} * kThreads + thread_index()) * std::int64_t{sizeof(Chunk)};
  if (offset >= page_bytes) return;
  for (int i = 0; i < count; ++i) {
    const std::int64_t source = pairs[2 * i], target = pairs[2 * i + 1];
    if (source <= 0 || target <= 0 || source == target) {
      if (offset == 0) report(fault, FaultKind::pair, i, pairs[2 * i], pairs[2 * i + 1]);
      continue;
    }
    *reinterpret_cast<Chunk*>(pages + target * page_bytes + offset) =
        *reinterpret_cast<const Chunk*>(pages + source * page_bytes + offset);
  }
}

}  // namespace

void begin(const BeginParams& p, Fault* fault, Stream stream) {
  launch(begin_kernel, {"begin", {}, kThreads, kReduceBytes, stream},
         Begin{p.input, p.slots, p.step, fault});
}

void accept(const AcceptParams& p, Stream stream) {
  if (p.step.sequences == 0) return;
  launch(accept_kernel,
         {"accept", {(p.step.sequences + kThreads - 1) / kThreads}, kThreads, 0, stream}, p.step,
         p.sampled, p.slots);
}

void copy_blocks(const CopyBlocksParams& p, Fault* fault, Stream stream) {
  if (p.count == 0) return;
  constexpr std::int64_t kBytes = kThreads * sizeof(Chunk);
  const auto blocks = static_cast<int>((p.kv.block_bytes + kBytes - 1) / kBytes);
  launch(copy_blocks_kernel, {"copy_blocks", {blocks}, kThreads, 0, stream}, p.pairs, p.count,
         p.kv.data, p.kv.block_bytes, fault);
}

}  // namespace mmengine::cuda
