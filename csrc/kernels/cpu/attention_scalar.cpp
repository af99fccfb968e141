// Attention for plain C++.
#define MM_SIMD "kernels/cpu/simd_scalar.h"

#include "kernels/cpu/attention_impl.h"
