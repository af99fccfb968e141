// Launchers of probes.cu. All pointers are device memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace mmengine::probes {

// Registers of a warp: a [32, 4], b [32, 2], d [32, 4] in and out.
void run_mma(const std::uint32_t* a, const std::uint32_t* b, float* d, bool bf16);
// data [32, 8], row [32]: the row a lane gives; out [32, matrices].
void run_load_matrix(int matrices, bool transposed, const std::uint16_t* data, const int* row,
                     std::uint32_t* out);
void run_shuffle(const float* x, float* out);  // [64] -> [7, 64]
void run_reverse(bool barrier, int blocks, const float* x, float* out, cuda::Stream stream);
void run_copy_async(bool wait, const float* x, float* out, int valid);  // [256] -> [256]
void run_copy_bulk(bool wait_full, bool wait_empty, const float* x, float* out, int rows);
void run_turns(int blocks, bool together, std::uint32_t* flag, float* sum);
void run_named_barrier(float* out);  // [64]
void run_wrong(int what, int threads, float* out);
void run_conversions(const float* x, int count, std::uint32_t* out);  // [count, 8]

}  // namespace mmengine::probes
