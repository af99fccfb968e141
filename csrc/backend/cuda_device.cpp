#include "backend/cuda_device.h"

#include <cuda_runtime.h>

#include "base/check.h"

namespace mmengine::cuda {
namespace {

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  fail(ErrorCode::engine_dead, "cuda", what, " failed: ", cudaGetErrorString(code));
}

void check_memory(cudaError_t code, const char* kind, std::size_t bytes) {
  if (code == cudaSuccess) return;
  throw Error(ErrorCode::resource, "memory",
              str("the device refused ", bytes, " bytes of ", kind, " memory (",
                  cudaGetErrorString(code), "); free memory, or lower the context or the batch"),
              {.reason = "memory", .needed = static_cast<std::int64_t>(bytes)});
}

}  // namespace

DeviceFacts look_at_device(int index) {
  DeviceFacts facts;
  facts.index = index;
  cudaRuntimeGetVersion(&facts.runtime_version);
  if (cudaDriverGetVersion(&facts.driver_version) != cudaSuccess) facts.driver_version = 0;
  if (cudaGetDeviceCount(&facts.count) != cudaSuccess) facts.count = 0;
  cudaDeviceProp properties{};
  if (index < 0 || index >= facts.count ||
      cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
    return facts;
  }
  facts.name = properties.name;
  facts.major = properties.major;
  facts.minor = properties.minor;
  facts.multiprocessors = properties.multiProcessorCount;
  facts.total_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  // Asking for free memory makes a context, which an older device need not be given.
  if (facts.major == 9 && facts.minor == 0) {
    std::size_t available = 0, total = 0;
    if (cudaSetDevice(index) == cudaSuccess && cudaMemGetInfo(&available, &total) == cudaSuccess) {
      facts.available_bytes = static_cast<std::int64_t>(available);
    }
  }
  return facts;
}

void use_device(int index) { check(cudaSetDevice(index), "choosing the device"); }

Buffer allocate_device(std::size_t bytes) {
  if (bytes == 0) return {};
  void* data = nullptr;
  check_memory(cudaMalloc(&data, bytes), "device", bytes);
  Buffer buffer(data, bytes, [](void* p, std::size_t) { cudaFree(p); });
  check(cudaMemset(data, 0, bytes), "clearing memory");
  return buffer;
}

Buffer allocate_pinned(std::size_t bytes) {
  if (bytes == 0) return {};
  void* data = nullptr;
  check_memory(cudaHostAlloc(&data, bytes, cudaHostAllocPortable), "pinned host", bytes);
  return {data, bytes, [](void* p, std::size_t) { cudaFreeHost(p); }};
}

Stream make_stream() {
  Stream stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  return stream;
}

void destroy_stream(Stream stream) { cudaStreamDestroy(stream); }

void copy_to_device(void* device, const void* host, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream),
        "copying to the device");
}

void copy_to_host(void* host, const void* device, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream),
        "copying from the device");
}

void clear_device(void* device, std::size_t bytes, Stream stream) {
  check(cudaMemsetAsync(device, 0, bytes, stream), "clearing memory");
}

void wait_for(Stream stream) { check(cudaStreamSynchronize(stream), "waiting for the device"); }

// Relaxed, because a kernel's first launch loads it.
Graph capture(Stream stream, const std::function<void()>& work) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "beginning a graph");
  cudaGraph_t recorded = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &recorded);
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    throw;
  }
  check(cudaStreamEndCapture(stream, &recorded), "ending a graph");
  Graph graph = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&graph, recorded, 0);
  cudaGraphDestroy(recorded);
  check(made, "making a graph");
  return graph;
}

void replay(Graph graph, Stream stream) {
  check(cudaGraphLaunch(graph, stream), "replaying a graph");
}

void destroy_graph(Graph graph) { cudaGraphExecDestroy(graph); }

}  // namespace mmengine::cuda
