// Element-wise kernels for AVX-512, and the table of this level.
#define MM_SIMD "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/elementwise_impl.h"

namespace mmengine::cpu {
namespace avx512 {

void pack_tiles(const PackTiles&);
void gemm_tile(const GemmTile&);
void round_groups(const float*, std::int64_t, const GroupRow&);
void group_tile(const GroupTile&);
float multiply_bytes(std::int64_t);
void attend_span(const AttendSpan&);
void merge(const SoftmaxState&, const SoftmaxState&, int, std::int64_t);

}  // namespace avx512

const Kernels kAvx512Kernels = {
    .name = "avx512",
    .pack_tiles = avx512::pack_tiles,
    .gemm_tile = avx512::gemm_tile,
    .round_groups = avx512::round_groups,
    .group_tile = avx512::group_tile,
    .put_tile = avx512::put_tile,
    .attend_span = avx512::attend_span,
    .merge = avx512::merge,
    .rms_norm = avx512::rms_norm,
    .silu_mul = avx512::silu_mul,
    .quantise = avx512::quantise,
    .quantise_row = avx512::quantise_row,
    .exp = avx512::exp_all,
    .read = avx512::read,
    .multiply = avx512::multiply,
    .multiply_flops = 2.0 * avx512::kWideLanes * kMultiplyChains,
    .multiply_bytes = avx512::multiply_bytes,
    .multiply_bytes_ops = 2.0 * 4 * avx512::kWideLanes * avx512::kByteChains * kByteRounds,
};

}  // namespace mmengine::cpu
