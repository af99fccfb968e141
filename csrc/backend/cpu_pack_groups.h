// Packing of int8 and int4 for the cpu backend (layout.h), and one row of it read back.
#pragma once

#include "backend/backend.h"
#include "backend/row_reader.h"
#include "base/parallel.h"

namespace mmengine {

// target has cpu::packed_bytes(spec) bytes.
void cpu_pack_groups(const HostWeight& host, const RowReader& reader, const WeightSpec& spec,
                     TensorView target, ThreadPool& pool);

// out[k] = the weights of row `row`.
void cpu_gather_groups(const Weight& table, std::int64_t row, float* out);

}  // namespace mmengine
