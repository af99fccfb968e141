// _testing_cuda_gemm: the packed weights of the cuda backend and the arithmetic of its products.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "backend/cuda_pack.h"
#include "base/check.h"
#include "bindings/errors.h"
#include "kernels/cuda/gemm_tiles.h"
#include "kernels/cuda/stream_k.h"
#include "kernels/cuda/weight_layout.h"

namespace py = pybind11;
using namespace mmengine;

namespace {

using Longs = py::array_t<std::int64_t, py::array::c_style>;

template <class T>
T choose(const std::string& name, const std::vector<std::string>& names) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (name == names[i]) return static_cast<T>(i);
  }
  throw py::value_error("unknown name " + name);
}

WeightSpec spec_of(const std::string& role, std::int64_t n, std::int64_t k,
                   const std::string& format, std::int64_t head_dim) {
  return {
      choose<Role>(role, {"embed", "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"}),
      n, k, choose<WeightFormat>(format, {"f32", "bf16", "fp8", "int8", "int4"}), head_dim};
}

py::dict layout(const WeightSpec& spec) {
  py::dict out;
  out["packed_rows"] = cuda::packed_rows(spec);
  out["n_tiles"] = cuda::n_tiles(spec);
  out["k_tiles"] = cuda::k_tiles(spec);
  out["data_bytes"] = cuda::data_bytes(spec);
  out["packed_bytes"] = cuda::packed_bytes(spec);
  return out;
}

Longs source_rows(const WeightSpec& spec) {
  Longs out(cuda::packed_rows(spec));
  for (std::int64_t r = 0; r < out.size(); ++r) out.mutable_at(r) = cuda::source_row(spec, r);
  return out;
}

Longs packed_rows(const WeightSpec& spec) {
  Longs out(spec.n);
  for (std::int64_t r = 0; r < spec.n; ++r) out.mutable_at(r) = cuda::packed_row(spec, r);
  return out;
}

Longs offsets(const WeightSpec& spec) {  // [packed rows, k]
  const std::int64_t rows = cuda::packed_rows(spec);
  Longs out({rows, spec.k});
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < spec.k; ++k) {
      out.mutable_at(r, k) = cuda::element_offset(spec, r, k);
    }
  }
  return out;
}

// parts: arrays of f32 bits, or of e4m3 codes with an array of f32 scales.
py::bytes pack(const WeightSpec& spec, const std::vector<py::array>& parts,
               const std::vector<py::array>& scales, bool interleaved, int threads) {
  HostWeight host;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    HostWeight::Part part;
    const DType dtype = scales.empty() ? DType::f32 : DType::e4m3;
    part.weight = {parts[i].data(), dtype, {parts[i].shape(0), parts[i].shape(1)}};
    if (!scales.empty()) part.weight_scale = {scales[i].data(), DType::f32, {scales[i].size()}};
    part.rows = interleaved ? RowOrder::interleaved : RowOrder::half_split;
    part.source = {"model.safetensors", "part" + std::to_string(i)};
    host.parts.push_back(part);
  }
  constexpr std::size_t kGuard = 64;
  const std::size_t bytes = cuda::packed_bytes(spec);
  std::string packed(bytes + kGuard, '\xa5');
  ThreadPool pool(threads);
  const Weight weight = cuda_pack(
      host, spec, {packed.data(), DType::u8, {static_cast<std::int64_t>(bytes)}, 1}, pool);
  MM_CHECK(packed.substr(bytes) == std::string(kGuard, '\xa5'), "cuda_pack", "wrote beyond ", bytes,
           " bytes");
  MM_CHECK((weight.scales != nullptr) == (spec.format == WeightFormat::fp8), "cuda_pack",
           "expected scales of fp8 and of nothing else");
  return py::bytes(packed.data(), bytes);
}

cuda::StreamK stream_k(std::int64_t tiles, int k_tiles, int blocks, bool whole_tiles) {
  return {tiles, k_tiles, blocks, whole_tiles};
}

// Per unit: tile, segment, first and last k tile, block, slot (-1: none is needed).
Longs units(const cuda::StreamK& s) {
  Longs out({s.units(), std::int64_t{6}});
  for (std::int64_t u = 0; u < s.units(); ++u) {
    const std::int64_t tile = s.tile_of(u);
    const int segment = s.segment_of(u), block = s.block_of(u);
    const int first = s.first_block(tile), last = s.last_block(tile);
    const std::int64_t slot = first == last    ? -1
                              : block == first ? s.running_slot(block)
                                               : s.segment_slot(block, u);
    const std::int64_t row[] = {tile,  segment, s.first_k_tile(segment), s.end_k_tile(segment),
                                block, slot};
    for (int i = 0; i < 6; ++i) out.mutable_at(u, i) = row[i];
  }
  return out;
}

py::dict schedule_of(const cuda::StreamK& s) {
  std::vector<std::pair<std::int64_t, std::int64_t>> spans;
  for (int b = 0; b < s.blocks; ++b) spans.emplace_back(s.span(b).begin, s.span(b).end);
  py::dict out;
  out["spans"] = spans;
  out["blocks"] = s.blocks;
  out["whole_tiles"] = s.whole_tiles;
  out["segments"] = s.segments();
  out["slots"] = s.slots();
  out["units"] = units(s);
  return out;
}

py::dict tile_of(const std::string& format, int terms, int columns) {
  const auto f = spec_of("o_proj", 1, 1, format, 0).format;
  const cuda::GemmTile tile = cuda::gemm_tile(f, terms, columns);
  py::dict out;
  out["stages"] = tile.stages;
  out["stage_bytes"] = tile.stage_bytes;
  out["x_bytes"] = tile.x_bytes();
  out["shared_bytes"] = tile.shared_bytes();
  out["blocks_per_processor"] = tile.blocks_per_processor;
  return out;
}

py::dict gemm_plan(const WeightSpec& spec, int terms, std::int64_t rows, int multiprocessors) {
  const cuda::GemmTile tile = cuda::gemm_tile(spec.format, terms, cuda::gemm_columns(rows));
  const cuda::StreamK s = cuda::gemm_schedule(spec, tile, rows, multiprocessors);
  py::dict out;
  out["columns"] = tile.columns;
  out["tiles"] = s.tiles;
  out["blocks"] = s.blocks;
  out["slots"] = s.slots();
  out["whole_tiles"] = s.whole_tiles;
  out["longest"] = (s.units() + s.blocks - 1) / s.blocks;
  out["units"] = s.units();
  out["scratch_bytes"] = cuda::gemm_scratch_layout(s, spec, tile, rows, s.slots()).bytes;
  out["scratch_limit"] = cuda::gemm_scratch_bytes(spec, rows);
  return out;
}

}  // namespace

PYBIND11_MODULE(MM_MODULE, m) {
  register_errors(m);
  py::class_<WeightSpec>(m, "Spec").def(py::init(&spec_of), py::arg("role"), py::arg("n"),
                                        py::arg("k"), py::arg("format"), py::arg("head_dim") = 0);
  m.def("layout", &layout);
  m.def("source_rows", &source_rows);
  m.def("packed_rows", &packed_rows);
  m.def("offsets", &offsets);
  m.def("pack", &pack, py::arg("spec"), py::arg("parts"),
        py::arg("scales") = std::vector<py::array>{}, py::arg("interleaved") = false,
        py::arg("threads") = 2);
  m.def("stream_k", [](std::int64_t tiles, int k_tiles, int blocks, bool whole_tiles) {
    return schedule_of(stream_k(tiles, k_tiles, blocks, whole_tiles));
  });
  m.def("gemm_tile", &tile_of);
  m.def("gemm_plan", &gemm_plan);
}
