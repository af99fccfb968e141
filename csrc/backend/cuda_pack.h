// Packing for the cuda backend, on the host: rows of the file -> 128 rows side by side, in tiles
// (kernels/cuda/weight_layout.h). One call packs the 128 rows of one run of tiles, which is one
// piece of the weight: a backend packs piece after piece into the buffers that it uploads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/row_reader.h"
#include "base/parallel.h"

namespace mmengine {

class CudaPacker {
 public:
  // Error{unsupported_model} for a format without tiles: f32, int8, int4. Else as Backend::pack.
  CudaPacker(const HostWeight& host, const WeightSpec& spec);

  const Weight& weight() const { return reader_.weight(); }  // without its data and scales
  std::int64_t pieces() const;
  std::size_t piece_bytes() const;  // piece i lies at i * piece_bytes() of the packed data

  // `piece`: piece_bytes() bytes. `scales`: 128 f32, those of the piece's rows; they lie at
  // data_bytes(spec) + i * 128 * 4 of the packed weight. Threads may pack different pieces at once.
  // Throws what RowReader::read throws.
  void pack(std::int64_t index, std::byte* piece, float* scales) const;

 private:
  const HostWeight& host_;
  WeightSpec spec_;
  RowReader reader_;
};

// The whole weight at once, in host memory: target has cuda::packed_bytes(spec) bytes.
Weight cuda_pack(const HostWeight& host, const WeightSpec& spec, TensorView target,
                 ThreadPool& pool);

}  // namespace mmengine
