#include "backend/buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace mmengine {

Slice Layout::add(std::string_view name, DType dtype, Shape shape) {
  std::uint64_t bytes = dtype_bytes(dtype);
  for (int i = 0; i < shape.rank; ++i) {
    MM_CHECK(shape[i] >= 0, "layout", name, ": expected sizes of 0 or more, got ", shape[i]);
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(shape[i]), &bytes)) {
      bytes = std::numeric_limits<std::uint64_t>::max();
      break;
    }
  }
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max() - kAlignment;
  if (bytes > kMost - bytes_) {
    throw Error(ErrorCode::resource, std::string(name),
                "needs more bytes than an address space has; lower the context or the batch",
                {.reason = "memory"});
  }
  const Slice slice{bytes_, dtype, shape};
  regions_.push_back({std::string(name), static_cast<std::size_t>(bytes)});
  bytes_ = (bytes_ + bytes + kAlignment - 1) / kAlignment * kAlignment;
  return slice;
}

TensorView Arena::operator[](const Slice& slice) const {
  const std::size_t bytes =
      static_cast<std::size_t>(slice.shape.count()) * dtype_bytes(slice.dtype);
  MM_CHECK(slice.offset <= buffer_.bytes() && bytes <= buffer_.bytes() - slice.offset, "arena",
           "slice: expected an end within ", buffer_.bytes(), " bytes, got ", slice.offset, " + ",
           bytes);
  TensorView view;
  view.data = static_cast<std::byte*>(buffer_.data()) + slice.offset;
  view.dtype = slice.dtype;
  view.shape = slice.shape;
  view.row_stride = slice.shape[1] * slice.shape[2] * slice.shape[3];
  return view;
}

Buffer allocate_host(std::size_t bytes) {
  if (bytes == 0) return {};
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw Error(ErrorCode::resource, "memory",
                str("the system refused ", bytes, " bytes (", std::strerror(errno),
                    "); free memory, or lower the context or the batch"),
                {.reason = "memory", .needed = static_cast<std::int64_t>(bytes)});
  }
  madvise(data, bytes, MADV_HUGEPAGE);  // only a hint: fewer address translations per token
  return {data, bytes, [](void* p, std::size_t n) { munmap(p, n); }};
}

}  // namespace mmengine
