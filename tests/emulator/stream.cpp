#include "emulator/stream.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace mmengine::emulator {
namespace {

std::mutex streams_mutex;
std::vector<cuda::Stream> streams;

void run_pending(CUstream_st& stream) {
  const Work work = std::exchange(stream.pending, {});
  for (const auto& piece : work) piece();
}

}  // namespace

cuda::Stream make_stream() {
  const std::lock_guard lock(streams_mutex);
  return streams.emplace_back(std::make_unique<CUstream_st>().release());
}

void destroy_stream(cuda::Stream stream) {
  const std::lock_guard lock(streams_mutex);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  std::unique_ptr<CUstream_st>(stream).reset();
}

void enqueue(cuda::Stream stream, std::function<void()> work) {
  if (stream == nullptr) return work();
  if (stream->captured != nullptr) {
    stream->captured->push_back(std::move(work));
    return;
  }
  const std::lock_guard lock(stream->mutex);
  stream->pending.push_back(std::move(work));
}

void run(cuda::Stream stream) {
  if (stream == nullptr) return;
  const std::lock_guard lock(stream->mutex);
  if (stream->failure != nullptr) std::rethrow_exception(std::exchange(stream->failure, nullptr));
  run_pending(*stream);
}

void run_all() {
  const std::lock_guard lock(streams_mutex);
  for (const cuda::Stream stream : streams) {
    const std::lock_guard of_stream(stream->mutex);
    try {
      run_pending(*stream);
    } catch (...) {
      stream->failure = std::current_exception();
    }
  }
}

}  // namespace mmengine::emulator
