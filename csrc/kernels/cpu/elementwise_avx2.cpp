// Element-wise kernels for AVX2, FMA and F16C, and the table of this level.
#define MM_SIMD "kernels/cpu/simd_avx2.h"

#include "kernels/cpu/elementwise_impl.h"

namespace mmengine::cpu {
namespace avx2 {

void gemm_tile(const GemmTile&);
void attend_span(const AttendSpan&);
void merge(const SoftmaxState&, const SoftmaxState&, int, std::int64_t);

}  // namespace avx2

const Kernels kAvx2Kernels = {"avx2",         avx2::gemm_tile,    avx2::attend_span,
                              avx2::merge,    avx2::rms_norm,     avx2::silu_mul,
                              avx2::quantise, avx2::quantise_row, avx2::exp_all,
                              avx2::read,     avx2::multiply};

}  // namespace mmengine::cpu
