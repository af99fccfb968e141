// The kernels of the cpu backend that are written once (*_impl.h) and compiled once per instruction
// set. All levels give the same bits. Stages, threads and scratch belong to the backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/cpu/layout.h"
#include "kernels/params.h"

namespace mmengine::cpu {

// Most rows of one GEMM task: each panel of weights is widened once for all of them. Of matrices up
// to 1,300 columns their activations stay in a second-level cache of 2 MB.
constexpr int kTaskRows = 384;
constexpr std::int64_t kPanelDepth = 256;
constexpr std::int64_t kPanelFloats = kBlockRows * kPanelDepth;
constexpr std::int64_t kTileFloats = kTaskRows * kBlockRows;
// Softmax partials start afresh at every multiple of this many positions and are merged in order,
// whoever computes them: that fixes the bits.
constexpr std::int64_t kSpanBlocks = 8;

// Up to this many rows stream the packed weights; more are packed in tiles first. Decoding a block
// once for every few rows is cheaper than a panel as long as they are few.
constexpr int kStreamRows = 8;

// What a thread reads of packed weights: [begin, end) in one go, and then from `next` on.
struct Stream {
  const std::byte *begin, *end, *next;
};

// Rows of x -> tiles of as many rows as the level multiplies at once, [k, rows of the tile] each
// and one behind the other; columns [begin, end) of them.
struct PackTiles {
  const float* x;
  std::int64_t x_stride;
  int rows;  // of one GEMM task
  std::int64_t k, begin, end;
  float* tiles;  // [rows * k]
};

struct Target {                 // what a tile ends in, asked for while its rows are multiplied
  const float* data = nullptr;  // rows `stride` apart, or null: not to be asked for
  std::int64_t stride = 0, columns = 0;
};

struct GemmTile {  // out[rows, 32] = x[rows, k] times one packed block, without row scales
  const float* x;  // rows x_stride apart, or what pack_tiles made of them
  std::int64_t x_stride;
  bool tiles;
  int rows;  // at most kTaskRows; kStreamRows where they are no tiles
  std::int64_t k;
  const void* block;
  Stream stream;  // that the block is part of
  WeightFormat format;
  Target target;
  float* panel;  // [kPanelFloats] scratch
  float* out;    // [rows, 32]
};

struct GroupRow {        // a row of x in groups (params.h)
  std::int8_t* codes;    // [groups * kGroup]
  float* scales;         // [groups]
  float* sums;           // [groups] scale * sum of codes
  std::int32_t* starts;  // [groups] -128 * sum of codes: what the + 128 of int8 codes adds
};

// Row `row` of rows that lie one behind the other.
static inline GroupRow row_of(const GroupRow& first, std::int64_t row, std::int64_t groups) {
  return {first.codes + row * groups * kGroup, first.scales + row * groups,
          first.sums + row * groups, first.starts + row * groups};
}

struct GroupTile {  // out[rows, 32] = rows of x times one packed block of int8 or int4
  GroupRow x;       // the first row; the others lie behind, each array for itself
  int rows;
  std::int64_t groups;
  const void* block;
  Stream stream;  // that the block is part of
  WeightFormat format;
  Target target;
  float* out;  // [rows, 32]
};

struct TileOut {            // out (+)= tile * (row_scales[row] * scales[column])
  const float* tile;        // [rows, 32]
  const float* scales;      // [columns] or null: no scales at all
  const float* row_scales;  // [rows] or null: ones
  int rows;
  std::int64_t columns;  // at most 32
  float* out;            // rows `stride` apart
  std::int64_t stride;
  bool add;
};

struct SoftmaxState {  // of `queries` queries
  float* highest;      // [queries]
  float* sum;          // [queries] of exp(score - highest)
  float* values;       // [queries, padded_head]
};

struct AttendSpan {             // state = softmax partials over the positions of the blocks
  const float* q;               // [queries, head_dim]
  const std::int32_t* visible;  // [queries] positions each may read, not decreasing
  int queries;
  std::int64_t head_dim;
  float scale;
  DType dtype;
  std::int64_t first_position;
  // K and V of this head in the blocks of the span; behind them what is read after it, which is
  // only asked for. `asked`: the span before was told of this one.
  const std::byte* const* parts;
  int blocks, blocks_next;
  bool asked;
  float* scores;  // [queries, kBlockTokens] scratch
  float* wide;    // [kv_head_elements(head_dim)] scratch of e4m3: a block as f32
  SoftmaxState state;
};

constexpr int kMultiplyChains = 12;  // more than the latency of a multiply-add covers

constexpr int kByteRounds = 8;  // of the probe of byte products, in each loop

struct Kernels {
  const char* name;
  void (*pack_tiles)(const PackTiles&);
  void (*gemm_tile)(const GemmTile&);
  void (*round_groups)(const float* x, std::int64_t k, const GroupRow& out);
  void (*group_tile)(const GroupTile&);
  void (*put_tile)(const TileOut&);
  void (*attend_span)(const AttendSpan&);
  // into = into and then part, in this order of positions
  void (*merge)(const SoftmaxState& into, const SoftmaxState& part, int queries,
                std::int64_t head_dim);
  void (*rms_norm)(const float* x, const float* gain, float eps, std::int64_t n, float* out);
  // out[j] = silu(tile[j] * scales[j]) * (tile[16 + j] * scales[16 + j]), j < n <= 16; scales may
  // be null.
  void (*silu_mul)(const float* tile, const float* scales, std::int64_t n, float* out);
  // In place: code(x / scale), and code(x / s) with the row's own s, which is returned
  // (InputQuant).
  void (*quantise)(float* x, std::int64_t n, float scale);
  float (*quantise_row)(float* x, std::int64_t n);
  void (*exp)(const float* x, std::int64_t n, float* out);
  // Any function of all bytes; of two orders in which they can be asked for.
  std::uint64_t (*read)(const void* data, std::size_t bytes, bool pages_in_turn);
  // multiply_flops in each loop, all in registers; any positive function of the results.
  float (*multiply)(std::int64_t loops);
  double multiply_flops;
  // The same of products of bytes that are summed up: multiply_bytes_ops in each loop.
  float (*multiply_bytes)(std::int64_t loops);
  double multiply_bytes_ops;
};

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

// Levels this machine can run, worst first.
std::vector<const Kernels*> supported_kernels();

}  // namespace mmengine::cpu
