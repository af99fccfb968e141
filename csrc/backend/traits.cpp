#include "backend/traits.h"

#include "backend/cpu_backend.h"
#include "backend/ref_backend.h"

namespace mmengine {

const BackendTraits& traits(BackendKind kind) {
  static const RefTraits ref;
  static const CpuTraits cpu;
  if (kind == BackendKind::ref) return ref;
  return cpu;
}

}  // namespace mmengine
