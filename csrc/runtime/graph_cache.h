// GraphCache: the pass of steps of few rows, captured once for each of some numbers of rows, and
// replayed. Such a step has one row and one row of logits of each sequence, and is padded to the
// next of these numbers: the launches of a pass depend on it alone, all else stands at fixed
// addresses, where begin puts it. Engine thread only.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "backend/backend.h"

namespace mmengine {

class GraphCache {
 public:
  static constexpr int kMostRows = 64;

  // Captures pass(1), pass(2), pass(4) .. up to `most`, at most kMostRows; nothing where the
  // backend does not capture.
  GraphCache(Backend& backend, int most, const std::function<void(int rows)>& pass);

  // What so many rows are padded to; 0 where that was not captured.
  int padded(int rows) const;
  void replay(int rows) const;  // as padded gave them

 private:
  std::map<int, std::unique_ptr<Captured>> graphs_;
};

}  // namespace mmengine
