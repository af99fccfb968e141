// The backend of a Hopper GPU, or, in a build without CUDA, the sentence that says so
// (no_cuda.cpp). cuda_backend.cpp asks a device for everything through cuda_device.h and the
// launchers of kernels/cuda, so the tests run it on an emulated one.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace mmengine {

// Error{unsupported_model} where there is no CUDA, no device, or one that will not do; nothing has
// been taken from it then.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace mmengine
