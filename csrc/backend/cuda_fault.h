// A Fault of the device in words, those of the other backends.
#pragma once

#include <string>

#include "kernels/cuda/fault.h"

namespace mmengine::cuda {

// Throws Error{engine_dead, the op} if there was a report.
void check_fault(const Fault& fault);

}  // namespace mmengine::cuda
