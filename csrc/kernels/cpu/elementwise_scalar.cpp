// Element-wise kernels for plain C++, and the table of this level.
#define MM_SIMD "kernels/cpu/simd_scalar.h"

#include "kernels/cpu/elementwise_impl.h"

namespace mmengine::cpu {
namespace scalar {

void pack_tiles(const PackTiles&);
void gemm_tile(const GemmTile&);
void round_groups(const float*, std::int64_t, const GroupRow&);
void group_tile(const GroupTile&);
float multiply_bytes(std::int64_t);
void attend_span(const AttendSpan&);
void merge(const SoftmaxState&, const SoftmaxState&, int, std::int64_t);

}  // namespace scalar

const Kernels kScalarKernels = {
    .name = "scalar",
    .pack_tiles = scalar::pack_tiles,
    .gemm_tile = scalar::gemm_tile,
    .round_groups = scalar::round_groups,
    .group_tile = scalar::group_tile,
    .put_tile = scalar::put_tile,
    .attend_span = scalar::attend_span,
    .merge = scalar::merge,
    .rms_norm = scalar::rms_norm,
    .silu_mul = scalar::silu_mul,
    .quantise = scalar::quantise,
    .quantise_row = scalar::quantise_row,
    .exp = scalar::exp_all,
    .read = scalar::read,
    .multiply = scalar::multiply,
    .multiply_flops = 2.0 * scalar::kWideLanes * kMultiplyChains,
    .multiply_bytes = scalar::multiply_bytes,
    .multiply_bytes_ops = 2.0 * 4 * scalar::kWideLanes * scalar::kByteChains * kByteRounds,
};

}  // namespace mmengine::cpu
