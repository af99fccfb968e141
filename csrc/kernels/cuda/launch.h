// How a kernel is put on a stream, and the words every launcher of this folder uses. No type of the
// CUDA toolkit: a Stream is what cudaStream_t is, by the driver's own name of it.
#pragma once

#include <cstddef>

struct CUstream_st;

namespace mmengine::cuda {

using Stream = CUstream_st*;

struct Grid {
  int x = 1, y = 1, z = 1;  // blocks
  // All blocks run at once, so that one may wait for another (wait_until); no more of them than the
  // device holds.
  bool together = false;
};

struct Launch {
  const char* name = "";  // the op, for messages
  Grid grid;
  int threads = 0;  // of a block, whole warps
  std::size_t shared_bytes = 0;
  Stream stream = nullptr;
};

}  // namespace mmengine::cuda
