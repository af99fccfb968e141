// How much memory this process may still take: what the system calls available, within the limit
// of its control group.
#pragma once

#include <cstdint>

namespace mmengine {

std::int64_t available_memory_bytes();

}  // namespace mmengine
