#include "backend/cpu_attention.h"

#include <algorithm>
#include <array>

namespace mmengine {
namespace {

using cpu::kBlockTokens;
using cpu::kSpanBlocks;

constexpr std::int64_t kSpanTokens = kSpanBlocks * kBlockTokens;
constexpr std::int64_t kSplitRows = 4;  // steps of at most this many rows are split into spans
constexpr int kGroupQueries = 24;       // share the loads of a block, fit the first-level cache

constexpr std::int64_t kMergeAlone = 32768;  // floats that one thread merges before two have begun

std::int64_t spans_of(std::int64_t tokens) { return (tokens + kSpanTokens - 1) / kSpanTokens; }

cpu::SoftmaxState state_at(float* data, int queries) {
  return {data, data + queries, data + 2 * queries};
}

struct Group {  // rows [begin, end) of one sequence
  std::int32_t sequence, begin, end;
};

std::int64_t count_groups(const Step& step, int rows_per_group) {
  std::int64_t count = 0;
  for (int s = 0; s < step.sequences; ++s) {
    count += (step.cu_rows[s + 1] - step.cu_rows[s] + rows_per_group - 1) / rows_per_group;
  }
  return count;
}

Group find_group(const Step& step, int rows_per_group, std::int64_t index) {
  for (std::int32_t s = 0;; ++s) {
    const std::int32_t begin = step.cu_rows[s], end = step.cu_rows[s + 1];
    const std::int64_t groups = (end - begin + rows_per_group - 1) / rows_per_group;
    if (index < groups) {
      const auto first = static_cast<std::int32_t>(begin + index * rows_per_group);
      return {s, first, std::min(first + rows_per_group, end)};
    }
    index -= groups;
  }
}

// Where K and V of one head of a sequence lie.
struct HeadBlocks {
  const std::byte* head;  // in block 0
  std::int64_t block_bytes;
  const std::int32_t* table;
  std::int64_t tokens;

  // Those of a span -> parts; returns how many.
  int of_span(std::int64_t span, const std::byte** parts) const {
    const std::int64_t first = span * kSpanBlocks;
    const std::int64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
    const auto count = static_cast<int>(std::clamp<std::int64_t>(blocks - first, 0, kSpanBlocks));
    for (int i = 0; i < count; ++i) parts[i] = head + table[first + i] * block_bytes;
    return count;
  }
};

HeadBlocks blocks_of(const AttentionParams& p, const Group& group, std::int64_t kv_head) {
  const auto bytes =
      cpu::kv_head_elements(p.kv.head_dim) * static_cast<std::int64_t>(dtype_bytes(p.kv.dtype));
  return {p.kv.data + kv_head * bytes, p.kv.block_bytes,
          p.step.block_table + std::int64_t{p.step.slot[group.sequence]} * p.step.max_blocks,
          p.step.positions[group.end - 1] + std::int64_t{1}};
}

// One task's view of the step: queries gathered side by side, and what they may see.
class Task {
 public:
  Task(const AttentionParams& p, const AttentionScratch& scratch, int thread, const Group& group,
       std::int64_t kv_head)
      : p_(p), group_(group), kv_head_(kv_head), heads_(scratch.heads_per_kv) {
    float* memory = scratch.of_threads + thread * scratch.thread_floats;
    const std::int64_t head_dim = p.kv.head_dim;
    float* q = memory;
    span_.q = q;
    span_.scores = q + cpu::round_up(scratch.queries * head_dim, 16);
    auto* visible = reinterpret_cast<std::int32_t*>(span_.scores + scratch.queries * kBlockTokens);
    span_.visible = visible;
    span_.wide = reinterpret_cast<float*>(visible + cpu::round_up(scratch.queries, 16));
    own_ = span_.wide + cpu::kv_head_elements(head_dim);
    span_.queries = (group.end - group.begin) * heads_;
    for (std::int32_t r = group.begin; r < group.end; ++r) {
      const float* row = p.q.as<float>() + r * p.q.row_stride + kv_head * heads_ * head_dim;
      q = std::copy_n(row, heads_ * head_dim, q);
      visible = std::fill_n(visible, heads_, p.step.positions[r] + 1);
    }
    span_.head_dim = head_dim;
    span_.scale = p.scale;
    span_.dtype = p.kv.dtype;
    blocks_ = blocks_of(p, group, kv_head);
  }

  int queries() const { return span_.queries; }
  std::int64_t spans() const { return spans_of(blocks_.tokens); }
  const HeadBlocks& blocks() const { return blocks_; }
  float* own_states() const { return own_; }

  // `next` of `next_span`: what this thread is likely to read afterwards; `asked`: it was told so
  // of this span.
  void compute(const cpu::Kernels& kernels, std::int64_t index, const cpu::SoftmaxState& state,
               const HeadBlocks& next, std::int64_t next_span, bool asked) {
    std::array<const std::byte*, 2 * kSpanBlocks> parts;
    span_.first_position = index * kSpanTokens;
    span_.blocks = blocks_.of_span(index, parts.data());
    span_.blocks_next = next.of_span(next_span, parts.data() + span_.blocks);
    span_.parts = parts.data();
    span_.asked = asked;
    span_.state = state;
    kernels.attend_span(span_);
  }

  void write(const cpu::SoftmaxState& state) const {
    const std::int64_t head_dim = p_.kv.head_dim, width = cpu::padded_head(head_dim);
    for (int i = 0; i < queries(); ++i) {
      const std::int64_t row = group_.begin + i / heads_;
      float* out = p_.out.as<float>() + row * p_.out.row_stride +
                   (kv_head_ * heads_ + i % heads_) * head_dim;
      const float* values = state.values + i * width;
      for (std::int64_t j = 0; j < head_dim; ++j) out[j] = values[j] / state.sum[i];
    }
  }

 private:
  const AttentionParams& p_;
  Group group_;
  std::int64_t kv_head_;
  int heads_;
  HeadBlocks blocks_;
  cpu::AttendSpan span_{};
  float* own_;
};

}  // namespace

AttentionScratch::AttentionScratch(Carver& carver, std::int64_t num_heads,
                                   std::int64_t num_kv_heads, std::int64_t head_dim,
                                   std::int64_t rows, std::int64_t context_tokens, int threads)
    : heads_per_kv(static_cast<int>(num_heads / num_kv_heads)),
      rows_per_group(std::max(1, kGroupQueries / heads_per_kv)),
      queries(rows_per_group * heads_per_kv),
      num_spans(spans_of(context_tokens)),
      state_floats(cpu::round_up(queries * (cpu::padded_head(head_dim) + 2), 16)),
      thread_floats(cpu::round_up(queries * head_dim, 16) + queries * kBlockTokens +
                    cpu::round_up(queries, 16) + cpu::kv_head_elements(head_dim) +
                    2 * state_floats),
      of_threads(carver.floats(thread_floats * threads)),
      states(carver.floats(std::min(rows, kSplitRows) * num_kv_heads * num_spans * state_floats)) {}

void cpu_attention(const AttentionParams& p, const cpu::Kernels& kernels, ThreadPool& pool,
                   Carver& carver) {
  std::int32_t last = 0;
  for (int r = 0; r < p.step.rows; ++r) last = std::max(last, p.step.positions[r]);
  const std::int64_t num_kv_heads = p.kv.num_kv_heads;
  const bool split = p.step.rows <= kSplitRows && last >= kSpanTokens && pool.threads() > 1;
  const AttentionScratch scratch(carver, p.q.shape[1] / p.kv.head_dim, num_kv_heads, p.kv.head_dim,
                                 split ? p.step.rows : 0, last + 1, pool.threads());
  const std::int64_t groups = count_groups(p.step, scratch.rows_per_group);
  const auto task_of = [&](std::int64_t index, int thread) {  // groups of one head side by side
    return Task(p, scratch, thread, find_group(p.step, scratch.rows_per_group, index % groups),
                index / groups);
  };
  const auto blocks_at = [&](std::int64_t index) {
    return blocks_of(p, find_group(p.step, scratch.rows_per_group, index % groups), index / groups);
  };
  const auto state_of = [&](std::int64_t task, std::int64_t span, int queries) {
    return state_at(scratch.states + (task * scratch.num_spans + span) * scratch.state_floats,
                    queries);
  };

  if (split) {
    const std::int64_t spans = scratch.num_spans;
    const std::int64_t tasks = groups * num_kv_heads * spans;
    pool.parallel_for(tasks, [&](std::int64_t begin, std::int64_t end, int thread) {
      for (std::int64_t i = begin; i < end; ++i) {
        Task task = task_of(i / spans, thread);
        if (i % spans >= task.spans()) continue;
        const std::int64_t next = std::min(i + 1, tasks - 1);
        task.compute(kernels, i % spans, state_of(i / spans, i % spans, task.queries()),
                     blocks_at(next / spans), next % spans, i != pool.share(tasks, thread));
      }
    });
    const auto merge_all = [&](std::int64_t begin, std::int64_t end, int thread) {
      for (std::int64_t i = begin; i < end; ++i) {
        const Task task = task_of(i, thread);
        const cpu::SoftmaxState first = state_of(i, 0, task.queries());
        for (std::int64_t s = 1; s < task.spans(); ++s) {
          kernels.merge(first, state_of(i, s, task.queries()), task.queries(), p.kv.head_dim);
        }
        task.write(first);
      }
    };
    const std::int64_t heads = groups * num_kv_heads;
    if (heads * spans * scratch.state_floats <= kMergeAlone) {
      merge_all(0, heads, 0);
    } else {
      pool.parallel_for(heads, merge_all);
    }
    return;
  }
  const std::int64_t tasks = groups * num_kv_heads;
  pool.parallel_for(tasks, [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t i = begin; i < end; ++i) {
      Task task = task_of(i, thread);
      const cpu::SoftmaxState all = state_at(task.own_states(), task.queries());
      const cpu::SoftmaxState part =
          state_at(task.own_states() + scratch.state_floats, task.queries());
      for (std::int64_t s = 0; s < task.spans(); ++s) {
        const bool more = s + 1 < task.spans();
        task.compute(kernels, s, s == 0 ? all : part,
                     more ? task.blocks() : blocks_at(std::min(i + 1, tasks - 1)), more ? s + 1 : 0,
                     s > 0 || i != pool.share(tasks, thread));
        if (s > 0) kernels.merge(all, part, task.queries(), p.kv.head_dim);
      }
      task.write(all);
    }
  });
}

}  // namespace mmengine
