#include "backend/traits.h"

#include "backend/cpu_backend.h"
#include "backend/cuda_traits.h"
#include "backend/ref_backend.h"

namespace mmengine {

const BackendTraits& traits(BackendKind kind) {
  static const RefTraits ref;
  static const CpuTraits cpu;
  static const CudaTraits cuda;
  if (kind == BackendKind::ref) return ref;
  if (kind == BackendKind::cuda) return cuda;
  return cpu;
}

}  // namespace mmengine
