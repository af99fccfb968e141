// backend/cuda_device.h without a device: its memory is the host's, its streams run when somebody
// waits for them.
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/cuda_device.h"
#include "base/memory.h"
#include "emulator/machine.h"
#include "emulator/stream.h"

namespace mmengine::cuda {
namespace {

struct Memory {  // of one kind
  std::mutex mutex;
  std::map<const std::byte*, Buffer> buffers;

  Buffer allocate(std::size_t bytes, Buffer::Free free) {
    Buffer buffer = allocate_host(bytes);
    void* data = buffer.data();
    const std::lock_guard lock(mutex);
    buffers.emplace(static_cast<const std::byte*>(data), std::move(buffer));
    return {data, bytes, free};
  }
  void release(const void* data) {
    emulator::run_all();  // nobody has waited for what uses it
    const std::lock_guard lock(mutex);
    buffers.erase(static_cast<const std::byte*>(data));
  }
  bool has(const void* data) {
    const std::lock_guard lock(mutex);
    const auto* at = static_cast<const std::byte*>(data);
    const auto after = buffers.upper_bound(at);
    return after != buffers.begin() &&
           at < std::prev(after)->first + std::prev(after)->second.bytes();
  }
};
Memory of_device, pinned;

}  // namespace

DeviceFacts look_at_device(int index) {
  DeviceFacts facts;
  facts.driver_version = facts.runtime_version = 13000;
  facts.count = 1;
  facts.index = index;
  facts.name = "emulated device";
  facts.major = 9;
  facts.multiprocessors = emulator::options().multiprocessors;
  facts.total_bytes = facts.available_bytes = available_memory_bytes();
  return facts;
}

void use_device(int) {}

Buffer allocate_device(std::size_t bytes) {
  if (bytes == 0) return {};
  return of_device.allocate(bytes, [](void* data, std::size_t) { of_device.release(data); });
}

Buffer allocate_pinned(std::size_t bytes) {
  if (bytes == 0) return {};
  return pinned.allocate(bytes, [](void* data, std::size_t) { pinned.release(data); });
}

Stream make_stream() { return emulator::make_stream(); }
void destroy_stream(Stream stream) { emulator::destroy_stream(stream); }

// Pinned memory is read late, as by a device that is busy.
void copy_to_device(void* device, const void* host, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  if (pinned.has(host)) {
    emulator::enqueue(stream, [=] { std::memcpy(device, host, bytes); });
    return;
  }
  const auto* first = static_cast<const std::byte*>(host);
  emulator::enqueue(stream, [device, copy = std::vector<std::byte>(first, first + bytes)] {
    std::memcpy(device, copy.data(), copy.size());
  });
}

void copy_to_host(void* host, const void* device, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  emulator::enqueue(stream, [=] { std::memcpy(host, device, bytes); });
}

void clear_device(void* device, std::size_t bytes, Stream stream) {
  emulator::enqueue(stream, [=] { std::memset(device, 0, bytes); });
}

void wait_for(Stream stream) { emulator::run(stream); }

Graph capture(Stream stream, const std::function<void()>& work) {
  auto graph = std::make_unique<CUgraphExec_st>();
  stream->captured = &graph->work;
  try {
    work();
  } catch (...) {
    stream->captured = nullptr;
    throw;
  }
  stream->captured = nullptr;
  return graph.release();
}

void replay(Graph graph, Stream stream) {
  for (const auto& work : graph->work) emulator::enqueue(stream, work);
}

void destroy_graph(Graph graph) { std::unique_ptr<CUgraphExec_st>(graph).reset(); }

}  // namespace mmengine::cuda
