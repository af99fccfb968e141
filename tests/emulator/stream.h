// A stream of the emulated device: what is put on it runs as late as it may, when somebody waits
// for it or frees memory of the device; or, while it is captured, is kept as a list that can be
// replayed. No stream: at once.
#pragma once

#include <exception>
#include <functional>
#include <mutex>
#include <vector>

#include "kernels/cuda/launch.h"

namespace mmengine::emulator {
using Work = std::vector<std::function<void()>>;
}

struct CUgraphExec_st {
  mmengine::emulator::Work work;
};

struct CUstream_st {
  mmengine::emulator::Work* captured = nullptr;
  std::mutex mutex;  // of the rest: freeing memory runs the streams of all threads
  mmengine::emulator::Work pending;
  std::exception_ptr failure;  // of what ran where nobody waited
};

namespace mmengine::emulator {

cuda::Stream make_stream();
void destroy_stream(cuda::Stream stream);  // what is on it is not done any more

void enqueue(cuda::Stream stream, std::function<void()> work);
void run(cuda::Stream stream);  // throws what its work throws, and drops the rest
void run_all();                 // every stream; what that throws comes from the next run of each

}  // namespace mmengine::emulator
