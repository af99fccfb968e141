// A stream of the emulated device: what is put on it runs at once, or, while it is captured, is
// kept as a list that can be replayed. No stream: at once.
#pragma once

#include <functional>
#include <vector>

#include "kernels/cuda/launch.h"

struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};

struct CUstream_st {
  std::vector<std::function<void()>>* captured = nullptr;
};

namespace mmengine::emulator {

template <class Work>
void enqueue(cuda::Stream stream, Work work) {
  if (stream != nullptr && stream->captured != nullptr) {
    stream->captured->emplace_back(std::move(work));
  } else {
    work();
  }
}

}  // namespace mmengine::emulator
