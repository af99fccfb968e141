// Products of integer groups for AVX2, FMA and F16C.
#define MM_SIMD "kernels/cpu/simd_avx2.h"

#include "kernels/cpu/group_impl.h"
