// backend/cuda_device.h without a device: its memory is the host's, its streams run at once.
#include <cstring>
#include <memory>

#include "backend/cuda_device.h"
#include "base/memory.h"
#include "emulator/machine.h"
#include "emulator/stream.h"

namespace mmengine::cuda {

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

Buffer allocate_device(std::size_t bytes) { return allocate_host(bytes); }
Buffer allocate_pinned(std::size_t bytes) { return allocate_host(bytes); }

Stream make_stream() { return std::make_unique<CUstream_st>().release(); }
void destroy_stream(Stream stream) { std::unique_ptr<CUstream_st>(stream).reset(); }

void copy_to_device(void* device, const void* host, std::size_t bytes, Stream stream) {
  emulator::enqueue(stream, [=] {
    if (bytes > 0) std::memcpy(device, host, bytes);
  });
}

void copy_to_host(void* host, const void* device, std::size_t bytes, Stream stream) {
  copy_to_device(host, device, bytes, stream);
}

void clear_device(void* device, std::size_t bytes, Stream stream) {
  emulator::enqueue(stream, [=] { std::memset(device, 0, bytes); });
}

void wait_for(Stream) {}

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

void replay(Graph graph, Stream) {
  for (const auto& work : graph->work) work();
}

void destroy_graph(Graph graph) { std::unique_ptr<CUgraphExec_st>(graph).reset(); }

}  // namespace mmengine::cuda
