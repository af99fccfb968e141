// What a kernel may use beside plain C++. Each function has two definitions of the same meaning:
// PTX (device_sm90.cuh) and plain C++ on fibers (tests/emulator), so the same kernel sources run
// without a device. Kernels hold no inline PTX and no conditional of their own.
#pragma once

//   MM_KERNEL(threads) void name(args)   of at most `threads` threads; args by value; a second
//                                        number: so many blocks share a multiprocessor
//   MM_DEVICE                            a function of a kernel, always inlined
//   launch(kernel, Launch, args...)      on a stream; Error{engine_dead, launch.name} if refused
//   shared_memory<T>()                   Launch::shared_bytes, 1024-byte aligned, not initialised
//   Ids: thread_index(), block_threads(), block_x/y/z(), grid_x/y/z(), lane_index(), warp_index()
//   block_barrier(), named_barrier(id 1..15, threads), named_arrive(id, threads), warp_barrier()
//   Whole warps: shuffle(v, lane), shuffle_xor(v, mask), shuffle_down(v, n), shuffle_up(v, n) of 4
//     or 8 bytes, ballot(p), any(p), all(p)
//   mma_f16(d, a, b), mma_bf16(d, a, b): d[16, 8] += a[16, 16] b[16, 8], f32 sums; with
//     g = lane / 4, t = lane % 4 a register holds two neighbours along k, the lower in its low
//     half:
//       a[0] (g, 2t) a[1] (g + 8, 2t) a[2] (g, 2t + 8) a[3] (g + 8, 2t + 8)
//       b[0] (k 2t, n g) b[1] (k 2t + 8, n g)    d[0..1] (g, 2t..) d[2..3] (g + 8, 2t..)
//   load_matrix_x1/x2/x4(r, row), .._transposed: 8x8 matrices of 16 bits; lane 8 i + j gives the
//     address of row j of matrix i, 16-byte aligned in shared memory; r[i] of a lane are elements
//     (g, 2t), (g, 2t + 1) of matrix i; transposed: (2t, g), (2t + 1, g)
//   copy_async<4 | 8 | 16>(shared, global, valid = true), copy_async_commit(),
//     copy_async_wait<pending groups>(): of this thread; others see it after a barrier; where not
//     valid zeros are written and nothing is read
//   mbarrier_init(bar, arrivals), mbarrier_init_fence(), mbarrier_arrive(bar),
//     mbarrier_expect(bar, bytes) (arrives, too), mbarrier_wait(bar, parity): until the phase of
//     that parity has ended; the first is 0. copy_bulk(shared, global, bytes, bar): 16-byte
//     multiples and alignment, counted by bar; copy_bulk_once: the same, of data read once
//     fence_async(): before a copy_bulk that reuses shared memory this thread wrote
//   prefetch_l2(global, bytes): 16-byte multiples
//   Flags in device memory: store_release(p, v), load_acquire(p), atomic_add(p, v) relaxed,
//     atomic_add_release(p, v), atomic_max(p, v), wait_until(p, v): spins until *p == v, acquires;
//     only with Grid::together
//   Conversions, to nearest, ties to even: narrow_{bf16, f16, e4m3}(f32), .._x2(low, high) packed;
//     widen_{bf16, f16, e4m3}(bits) to f32; widen_e4m3_x2(two codes) to two f16. e4m3 saturates to
//     +-448; a NaN becomes the positive NaN of its type.
//   bits_of(f32), float_of(u32); exp2_fast(x): 2 ulp, subnormal results may be 0

#ifdef MM_CUDA_EMULATED
#include "emulator/device_emulated.h"
#else
#include "kernels/cuda/device_sm90.cuh"
#endif
