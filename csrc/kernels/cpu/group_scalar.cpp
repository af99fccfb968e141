// Products of integer groups for plain C++.
#define MM_SIMD "kernels/cpu/simd_scalar.h"

#include "kernels/cpu/group_impl.h"
