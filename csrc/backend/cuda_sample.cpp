#include "backend/cuda_sample.h"

#include <algorithm>
#include <type_traits>

namespace mmengine {
namespace {

// A given row is only scored.
bool is_sampled(const SampleRow& row) { return row.given < 0; }

std::int64_t words_of_mask(std::int64_t vocab) { return (vocab + 31) / 32; }

// Appends list[begin, end) to `target` from `size` on; begin and end become those of the copy.
template <class T>
void append(const T* list, std::int32_t& begin, std::int32_t& end, T* target, std::int32_t& size) {
  const std::int32_t first = size;
  if (begin < end) {
    std::copy(list + begin, list + end, target + first);
    size += end - begin;
  }
  begin = first;
  end = size;
}

}  // namespace

CudaSampleImage::CudaSampleImage(const Counts& counts) {
  std::size_t end = 0;
  const auto place = [&end](std::int64_t count, std::size_t element) {
    const std::size_t begin = end;
    end += (static_cast<std::size_t>(count) * element + 15) / 16 * 16;
    return begin;
  };
  place(counts.rows, sizeof(SampleRow));
  bias_ = place(counts.bias, sizeof(LogitBias));
  count_ = place(counts.count, sizeof(TokenCount));
  ban_ = place(counts.ban, sizeof(std::int32_t));
  mask_ = place(counts.mask, sizeof(std::uint32_t));
  changed_bias_ = place(counts.bias, sizeof(float));
  changed_count_ = place(counts.count, sizeof(float));
  changed_ban_ = place(counts.ban, sizeof(float));
  device_bytes_ = end;
}

CudaSampleImage::CudaSampleImage(const SampleInput& input, int rows, std::int64_t vocab) {
  Counts counts;
  counts.rows = rows;
  for (int e = 0; e < rows; ++e) {
    const SampleRow& row = input.row[e];
    if (!is_sampled(row)) continue;
    counts.bias += std::max(0, row.bias_end - row.bias_begin);
    counts.count += std::max(0, row.count_end - row.count_begin);
    counts.ban += std::max(0, row.ban_end - row.ban_begin);
    counts.mask += row.mask_begin < 0 ? 0 : words_of_mask(vocab);
  }
  *this = CudaSampleImage(counts);
  input_ = input;
  rows_ = rows;
  words_ = words_of_mask(vocab);
}

std::size_t CudaSampleImage::most_device_bytes(const StepLimits& limits, std::int64_t vocab) {
  // Of a sequence: the API takes 1024 of each, and stop ids of the model are banned as well.
  constexpr std::int64_t kBias = 1024, kBans = 2048;
  const std::int64_t sequences = limits.sequences;
  Counts counts;
  counts.rows = limits.logits_rows;
  counts.bias = sequences * kBias;
  counts.count = sequences * std::min<std::int64_t>(vocab, limits.context_tokens);
  counts.ban = sequences * kBans;
  counts.mask = sequences * words_of_mask(vocab);
  return CudaSampleImage(counts).device_bytes();
}

void CudaSampleImage::write(std::byte* image) const {
  static_assert(std::is_trivially_copyable_v<SampleRow>);
  auto* rows = reinterpret_cast<SampleRow*>(image);
  auto* bias = reinterpret_cast<LogitBias*>(image + bias_);
  auto* count = reinterpret_cast<TokenCount*>(image + count_);
  auto* ban = reinterpret_cast<std::int32_t*>(image + ban_);
  auto* mask = reinterpret_cast<std::uint32_t*>(image + mask_);
  std::int32_t biases = 0, counts = 0, bans = 0;
  std::int64_t words = 0;
  for (int e = 0; e < rows_; ++e) {
    SampleRow row = input_.row[e];
    if (is_sampled(row)) {
      append(input_.bias, row.bias_begin, row.bias_end, bias, biases);
      std::stable_sort(bias + row.bias_begin, bias + row.bias_end,
                       [](const LogitBias& a, const LogitBias& b) { return a.id < b.id; });
      append(input_.count, row.count_begin, row.count_end, count, counts);
      append(input_.ban, row.ban_begin, row.ban_end, ban, bans);
      if (row.mask_begin >= 0) {
        std::copy_n(input_.mask + row.mask_begin, words_, mask + words);
        row.mask_begin = words;
        words += words_;
      }
    }
    rows[e] = row;
  }
}

SampleInput CudaSampleImage::input_on(std::byte* device) const {
  return {reinterpret_cast<SampleRow*>(device), reinterpret_cast<std::int32_t*>(device + ban_),
          reinterpret_cast<LogitBias*>(device + bias_),
          reinterpret_cast<TokenCount*>(device + count_),
          reinterpret_cast<std::uint32_t*>(device + mask_)};
}

cuda::ChangedLogits CudaSampleImage::changed_on(std::byte* device) const {
  return {reinterpret_cast<float*>(device + changed_bias_),
          reinterpret_cast<float*>(device + changed_count_),
          reinterpret_cast<float*>(device + changed_ban_)};
}

}  // namespace mmengine
