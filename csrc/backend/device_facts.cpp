#include "backend/device_facts.h"

#include "base/check.h"

namespace mmengine::cuda {
namespace {

std::string version_text(int version) { return str(version / 1000, ".", version % 1000 / 10); }

}  // namespace

void check_device(const DeviceFacts& f) {
  const auto refuse = [](const auto&... message) {
    fail(ErrorCode::unsupported_model, "device", message..., "; or use device cpu");
  };
  if (f.driver_version == 0) {
    refuse("expected a driver for NVIDIA GPUs, got none; install one for CUDA ",
           version_text(f.runtime_version));
  }
  if (f.driver_version / 1000 < f.runtime_version / 1000) {  // minor versions get on
    refuse("expected a driver for CUDA ", version_text(f.runtime_version / 1000 * 1000),
           " or newer, got one for ", version_text(f.driver_version), "; install a newer driver");
  }
  if (f.count == 0) refuse("expected an NVIDIA GPU, got none; run this where there is one");
  if (f.index < 0 || f.index >= f.count) {
    refuse("expected cuda:0 to cuda:", f.count - 1, ", got cuda:", f.index, "; choose one of them");
  }
  if (f.major != 9 || f.minor != 0) {
    refuse("expected a Hopper GPU of compute capability 9.0, got ", f.name, " of ", f.major, ".",
           f.minor, "; choose another GPU");
  }
}

}  // namespace mmengine::cuda
