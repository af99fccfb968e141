// GEMM for plain C++.
#define MM_SIMD "kernels/cpu/simd_scalar.h"

#include "kernels/cpu/gemm_impl.h"
