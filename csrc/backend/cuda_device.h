// The seam to the CUDA runtime: all that the cuda backend asks of a device beside launches. No type
// of the toolkit; cuda_device.cpp has it for a device, tests/emulator for none. Failures are
// Error{engine_dead} naming what was asked for, but for those said below.
#pragma once

#include <cstddef>
#include <functional>

#include "backend/buffer.h"
#include "backend/device_facts.h"
#include "kernels/cuda/launch.h"

struct CUgraphExec_st;

namespace mmengine::cuda {

using Graph = CUgraphExec_st*;

// What there is to be known; takes nothing and does not throw for what is missing.
DeviceFacts look_at_device(int index);
// The device of all calls of this thread that follow.
void use_device(int index);

// Zero-filled. Error{resource} when there is not so much.
Buffer allocate_device(std::size_t bytes);
// Host memory that a device reads and writes by itself, beside what the host does.
Buffer allocate_pinned(std::size_t bytes);

Stream make_stream();
void destroy_stream(Stream stream);

// On the stream. Memory of the host that is not pinned may be used again at once.
void copy_to_device(void* device, const void* host, std::size_t bytes, Stream stream);
void copy_to_host(void* host, const void* device, std::size_t bytes, Stream stream);
void clear_device(void* device, std::size_t bytes, Stream stream);
// Until all that the stream was given is done.
void wait_for(Stream stream);

// What `work` puts on the stream, which is not done but recorded with the values of its arguments.
Graph capture(Stream stream, const std::function<void()>& work);
void replay(Graph graph, Stream stream);
void destroy_graph(Graph graph);

}  // namespace mmengine::cuda
