// What is known of a CUDA device before anything is asked of it, and whether it will do. Host code
// of every build.
#pragma once

#include <cstdint>
#include <string>

namespace mmengine::cuda {

struct DeviceFacts {
  int driver_version = 0, runtime_version = 0;  // 1000 major + 10 minor; driver 0: there is none
  int count = 0;                                // devices
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::int64_t total_bytes = 0, available_bytes = 0;
};

// Error{unsupported_model}, one sentence: no driver, one that is too old, no such device, a device
// that sm_90a code does not run on.
void check_device(const DeviceFacts& facts);

}  // namespace mmengine::cuda
