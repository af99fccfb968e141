// _testing_cuda_gemm: the packed weights of the cuda backend, the arithmetic of its products, and
// the products themselves on the emulated device.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/cuda_pack.h"
#include "base/check.h"
#include "bindings/errors.h"
#include "emulator/machine.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_args.h"
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

struct Packed {
  std::string data;
  Weight weight;
};

// parts: arrays of f32, or of e4m3 codes with an array of f32 scales each.
std::unique_ptr<Packed> pack(const WeightSpec& spec, const std::vector<py::array>& parts,
                             const std::vector<py::array>& scales, bool interleaved, int threads,
                             const std::string& quant, float input_scale, bool allow_nonfinite) {
  HostWeight host;
  host.quant = choose<InputQuant>(quant, {"none", "fixed", "per_token"});
  host.allow_nonfinite = allow_nonfinite;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    HostWeight::Part part;
    const DType dtype = scales.empty() ? DType::f32 : DType::e4m3;
    part.weight = {parts[i].data(), dtype, {parts[i].shape(0), parts[i].shape(1)}};
    if (!scales.empty()) part.weight_scale = {scales[i].data(), DType::f32, {scales[i].size()}};
    if (host.quant == InputQuant::fixed) part.input_scale = {&input_scale, DType::f32, {1}};
    part.rows = interleaved ? RowOrder::interleaved : RowOrder::half_split;
    part.source = {"model.safetensors", "part" + std::to_string(i)};
    host.parts.push_back(part);
  }
  constexpr std::size_t kGuard = 64;
  const std::size_t bytes = cuda::packed_bytes(spec);
  auto packed = std::make_unique<Packed>();
  packed->data.assign(bytes + kGuard, '\xa5');
  ThreadPool pool(threads);
  const TensorView target{packed->data.data(), DType::u8, {static_cast<std::int64_t>(bytes)}, 1};
  packed->weight = cuda_pack(host, spec, target, pool);
  MM_CHECK(packed->data.substr(bytes) == std::string(kGuard, '\xa5'), "cuda_pack", "wrote beyond ",
           bytes, " bytes");
  MM_CHECK((packed->weight.scales != nullptr) == (spec.format == WeightFormat::fp8), "cuda_pack",
           "expected scales of fp8 and of nothing else");
  packed->data.resize(bytes);  // in place: the weight points into it
  return packed;
}

TensorView matrix(const py::array_t<float>& a) {
  if (a.ndim() != 2 || a.strides(1) != 4) throw py::value_error("expected adjacent columns");
  const std::int64_t stride = a.shape(0) > 1 ? a.strides(0) / 4 : a.shape(1);
  return {const_cast<float*>(a.data()), DType::f32, {a.shape(0), a.shape(1)}, stride};
}

// out [rows, n] is used in place; scratch memory starts as poison and ends exactly where it is said
// to.
void gemm(const Packed& packed, const py::array_t<float>& x, const py::array_t<float>& out,
          const std::string& epilogue, const std::optional<py::array_t<float>>& x_scale,
          int multiprocessors) {
  constexpr std::size_t kGuard = 256;
  const std::size_t bytes = cuda::gemm_scratch_bytes(packed.weight.spec, x.shape(0));
  std::vector<std::byte> scratch(bytes + 2 * kGuard, std::byte{0xff});
  void* aligned = scratch.data();
  std::size_t room = scratch.size();
  auto* begin = static_cast<std::byte*>(std::align(256, bytes, aligned, room));
  cuda::gemm(
      {matrix(x), x_scale ? x_scale->data() : nullptr, packed.weight,
       choose<cuda::GemmEpilogue>(epilogue, {"store", "add", "silu_mul"}), matrix(out), begin},
      multiprocessors, nullptr);
  MM_CHECK(std::all_of(begin + bytes, scratch.data() + scratch.size(),
                       [](std::byte b) { return b == std::byte{0xff}; }),
           "gemm", "wrote beyond ", bytes, " bytes of scratch memory");
}

// The terms of x [rows, k] as the kernel stages them: bytes, and the factor of each row.
py::tuple stage(const py::array_t<float>& x, const std::string& format, int columns, int terms) {
  const WeightSpec spec = spec_of("o_proj", 1, x.shape(1), format, 0);
  const auto rows = static_cast<int>(x.shape(0));
  const int blocks = (rows + columns - 1) / columns, tiles = 3;
  const auto k_tiles = static_cast<int>(cuda::k_tiles(spec));
  std::string staged(
      static_cast<std::size_t>(blocks) * k_tiles * columns * terms * cuda::x_row_bytes(spec.format),
      '\xff');
  py::array_t<float> factors(py::ssize_t{blocks} * columns);
  std::vector<std::uint32_t> arrived(tiles, 7);
  const TensorView view = matrix(x);
  cuda::stage_rows(
      {view.as<float>(), view.row_stride, x.shape(1), rows, columns, terms, k_tiles,
       reinterpret_cast<std::byte*>(staged.data()), factors.mutable_data(), arrived.data(), tiles},
      spec.format, nullptr);
  MM_CHECK(arrived == std::vector<std::uint32_t>(tiles, 0), "stage_rows", "expected zeros");
  return py::make_tuple(py::bytes(staged), factors);
}

void set_order(const std::string& order, std::uint64_t seed) {
  emulator::options().order =
      choose<emulator::Order>(order, {"ascending", "descending", "shuffled", "warps"});
  emulator::options().seed = seed;
}

// Per unit: tile, segment, first and last k tile, block, slot (-1: none is needed).
Longs units(const cuda::StreamK& s) {
  Longs out({py::ssize_t{s.units()}, py::ssize_t{6}});
  for (int u = 0; u < s.units(); ++u) {
    const int tile = s.tile_of(u), segment = s.segment_of(u), block = s.block_of(u);
    const int first = s.first_block(tile), last = s.last_block(tile);
    const int slot = first == last    ? -1
                     : block == first ? s.running_slot(block)
                                      : s.segment_slot(block, u);
    const int row[] = {tile, segment, s.first_k_tile(segment), s.end_k_tile(segment), block, slot};
    for (int i = 0; i < 6; ++i) out.mutable_at(u, i) = row[i];
  }
  return out;
}

py::dict schedule_of(const cuda::StreamK& s) {
  std::vector<std::vector<int>> of_block;
  for (int b = 0; b < s.blocks; ++b) {
    auto& own = of_block.emplace_back();
    for (int unit = s.begin(b); unit < s.end(b); unit = s.next(unit)) own.push_back(unit);
  }
  py::dict out;
  out["of_block"] = of_block;
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
  py::class_<Packed>(m, "Packed").def_property_readonly("data", [](const Packed& packed) {
    return py::bytes(packed.data);
  });
  m.def("pack", &pack, py::arg("spec"), py::arg("parts"),
        py::arg("scales") = std::vector<py::array>{}, py::arg("interleaved") = false,
        py::arg("threads") = 2, py::arg("quant") = "none", py::arg("input_scale") = 1.0f,
        py::arg("allow_nonfinite") = false);
  m.def("gemm", &gemm, py::arg("weight"), py::arg("x"), py::arg("out"),
        py::arg("epilogue") = "store", py::arg("x_scale") = py::none(),
        py::arg("multiprocessors") = 132);
  m.def("stage", &stage);
  m.def("set_order", &set_order, py::arg("order"), py::arg("seed") = 0);
  m.def("stream_k", [](int tiles, int k_tiles, int blocks, bool whole_tiles) {
    return schedule_of({tiles, k_tiles, blocks, whole_tiles});
  });
  m.def("gemm_tile", &tile_of);
  m.def("tile_place", [](int tile, int n_tiles, int column_blocks) {
    const cuda::TilePlace at = cuda::tile_place(tile, n_tiles, column_blocks);
    return std::make_pair(at.n_tile, at.column_block);
  });
  m.def("gemm_plan", &gemm_plan);
}
