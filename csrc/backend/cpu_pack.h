// Packing for the cpu backend: rows of the file -> blocks of 32 rows side by side (layout.h).
#pragma once

#include "backend/backend.h"
#include "base/parallel.h"

namespace mmengine {

// Backend::pack; target has cpu::packed_bytes(spec) bytes.
Weight cpu_pack(const HostWeight& host, const WeightSpec& spec, TensorView target,
                ThreadPool& pool);

}  // namespace mmengine
