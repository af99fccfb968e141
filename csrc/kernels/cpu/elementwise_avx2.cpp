// Element-wise kernels for AVX2, FMA and F16C, and the table of this level.
#define MM_SIMD "kernels/cpu/simd_avx2.h"

#include "kernels/cpu/elementwise_impl.h"

namespace mmengine::cpu {
namespace avx2 {

void pack_tiles(const PackTiles&);
void gemm_tile(const GemmTile&);
void round_groups(const float*, std::int64_t, const GroupRow&);
void group_tile(const GroupTile&);
float multiply_bytes(std::int64_t);
void attend_span(const AttendSpan&);
void merge(const SoftmaxState&, const SoftmaxState&, int, std::int64_t);

}  // namespace avx2

const Kernels kAvx2Kernels = {
    .name = "avx2",
    .pack_tiles = avx2::pack_tiles,
    .gemm_tile = avx2::gemm_tile,
    .round_groups = avx2::round_groups,
    .group_tile = avx2::group_tile,
    .put_tile = avx2::put_tile,
    .attend_span = avx2::attend_span,
    .merge = avx2::merge,
    .rms_norm = avx2::rms_norm,
    .silu_mul = avx2::silu_mul,
    .quantise = avx2::quantise,
    .quantise_row = avx2::quantise_row,
    .exp = avx2::exp_all,
    .read = avx2::read,
    .multiply = avx2::multiply,
    .multiply_flops = 2.0 * avx2::kWideLanes * kMultiplyChains,
    .multiply_bytes = avx2::multiply_bytes,
    .multiply_bytes_ops = 2.0 * 4 * avx2::kWideLanes * avx2::kByteChains * kByteRounds,
};

}  // namespace mmengine::cpu
