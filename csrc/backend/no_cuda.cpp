// Stands in for cuda_backend.cpp where the build has no CUDA.
#include "backend/cuda_backend.h"
#include "base/check.h"

namespace mmengine {

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& /*options*/) {
  fail(ErrorCode::unsupported_model, "device",
       "this build of mmengine has no CUDA backend; use device cpu");
}

}  // namespace mmengine
