#include "runtime/graph_cache.h"

#include <algorithm>
#include <utility>

namespace mmengine {

GraphCache::GraphCache(Backend& backend, int most, const std::function<void(int rows)>& pass) {
  most = std::min(most, kMostRows);
  for (int next = 1, rows = 0; rows < most; next *= 2) {
    rows = std::min(next, most);
    std::unique_ptr<Captured> graph = backend.capture([&] { pass(rows); });
    if (graph == nullptr) return;
    graphs_.emplace(rows, std::move(graph));
  }
}

int GraphCache::padded(int rows) const {
  const auto graph = graphs_.lower_bound(rows);
  return rows == 0 || graph == graphs_.end() ? 0 : graph->first;
}

void GraphCache::replay(int rows) const { graphs_.at(rows)->replay(); }

}  // namespace mmengine
