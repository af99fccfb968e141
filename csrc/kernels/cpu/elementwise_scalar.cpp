// Element-wise kernels for plain C++, and the table of this level.
#define MM_SIMD "kernels/cpu/simd_scalar.h"

#include "kernels/cpu/elementwise_impl.h"

namespace mmengine::cpu {
namespace scalar {

void gemm_tile(const GemmTile&);
void attend_span(const AttendSpan&);
void merge(const SoftmaxState&, const SoftmaxState&, int, std::int64_t);

}  // namespace scalar

const Kernels kScalarKernels = {"scalar",         scalar::gemm_tile,    scalar::attend_span,
                                scalar::merge,    scalar::rms_norm,     scalar::silu_mul,
                                scalar::quantise, scalar::quantise_row, scalar::exp_all,
                                scalar::read,     scalar::multiply};

}  // namespace mmengine::cpu
