// How the cpu backend shares attention out: tasks of (group of rows, kv head), and, when a step has
// so few rows that this would leave threads idle, of (group, kv head, span of positions). The sums
// are the same either way: spans are always computed afresh and merged in ascending order.
#pragma once

#include <cstdint>

#include "backend/scratch.h"
#include "base/parallel.h"
#include "kernels/cpu/launch.h"

namespace mmengine {

struct AttentionScratch {
  AttentionScratch(Carver& carver, std::int64_t num_heads, std::int64_t num_kv_heads,
                   std::int64_t head_dim, std::int64_t rows, std::int64_t context_tokens,
                   int threads);

  int heads_per_kv, rows_per_group, queries;  // queries: of a whole group and kv head
  std::int64_t num_spans, state_floats, thread_floats;
  float* of_threads;  // [threads, thread_floats]
  float* states;      // [rows, kv heads, spans, state_floats], for splitting
};

void cpu_attention(const AttentionParams& p, const cpu::Kernels& kernels, ThreadPool& pool,
                   Carver& carver);

}  // namespace mmengine
