// Which instruction sets this machine has. A further level is one more line here and one more set
// of *_<level>.cpp files.
#include "kernels/cpu/launch.h"

namespace mmengine::cpu {

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> levels{&kScalarKernels};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    levels.push_back(&kAvx2Kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
      levels.push_back(&kAvx512Kernels);
    }
  }
#endif
  return levels;
}

}  // namespace mmengine::cpu
