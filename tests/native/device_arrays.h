// Where the arrays of a test are when a stage runs: in the host's own memory, used in place, or,
// for a backend whose memory is its own, in copies with guards around them that are brought back.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/check.h"

namespace mmengine {

class DeviceInts {  // memory of the backend
 public:
  DeviceInts() = default;
  DeviceInts(std::shared_ptr<Backend> backend, const std::vector<std::int32_t>& values)
      : backend_(std::move(backend)),
        count_(values.size()),
        buffer_(backend_->allocate((count_ + 1) * sizeof(std::int32_t))) {
    backend_->upload(data(), values.data(), count_ * sizeof(std::int32_t));
  }
  std::int32_t* data() const { return static_cast<std::int32_t*>(buffer_.data()); }
  std::vector<std::int32_t> host() const {
    std::vector<std::int32_t> values(count_);
    backend_->download(values.data(), data(), count_ * sizeof(std::int32_t));
    backend_->wait();
    return values;
  }

 private:
  std::shared_ptr<Backend> backend_;
  std::size_t count_ = 0;
  Buffer buffer_;
};

// The arrays of one op. bring_back() ends it: only then is written what it wrote.
class OpArrays {
 public:
  OpArrays(Backend& backend, bool in_place) : backend_(backend), in_place_(in_place) {}

  template <class T>
  T* at(T* host, std::size_t count) {
    if (in_place_ || host == nullptr) return host;
    const std::size_t bytes = count * sizeof(T);
    // As far from a multiple of 16 bytes as the host's own: kernels see how arrays are aligned.
    const std::size_t lead = kGuard + reinterpret_cast<std::uintptr_t>(host) % 16;
    Copy copy{backend_.allocate(lead + bytes + kGuard), const_cast<std::remove_const_t<T>*>(host),
              lead, bytes, !std::is_const_v<T>};
    std::vector<std::uint8_t> image(copy.buffer.bytes(), kGuardByte);
    if (bytes > 0) std::memcpy(image.data() + lead, host, bytes);
    backend_.upload(copy.buffer.data(), image.data(), image.size());
    backend_.wait();  // `image` ends here
    copies_.push_back(std::move(copy));
    return reinterpret_cast<T*>(static_cast<std::byte*>(copies_.back().buffer.data()) + lead);
  }

  TensorView at(TensorView view) {  // f32, with what lies between its rows
    const std::int64_t rows = view.shape[0];
    const std::int64_t count = rows == 0 ? 0 : (rows - 1) * view.row_stride + view.shape[1];
    view.data = at(view.as<float>(), static_cast<std::size_t>(count));
    return view;
  }

  void bring_back() {
    backend_.wait();
    for (const Copy& copy : copies_) {
      std::vector<std::uint8_t> image(copy.buffer.bytes());
      backend_.download(image.data(), copy.buffer.data(), image.size());
      backend_.wait();
      for (std::size_t i = 0; i < image.size(); ++i) {
        if (i == copy.lead) i += copy.bytes;
        MM_CHECK(i >= image.size() || image[i] == kGuardByte, "guard", "wrote byte ",
                 static_cast<std::int64_t>(i - copy.lead), " of ", copy.bytes);
      }
      if (copy.writable && copy.bytes > 0) {
        std::memcpy(copy.host, image.data() + copy.lead, copy.bytes);
      }
    }
  }

 private:
  static constexpr std::size_t kGuard = 256;
  static constexpr std::uint8_t kGuardByte = 0xa5;
  struct Copy {
    Buffer buffer;
    void* host;
    std::size_t lead, bytes;
    bool writable;
  };
  Backend& backend_;
  bool in_place_;
  std::vector<Copy> copies_;
};

}  // namespace mmengine
