// Attention for AVX-512.
#define MM_SIMD "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/attention_impl.h"
