// Products of integer groups for AVX-512.
#define MM_SIMD "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/group_impl.h"
