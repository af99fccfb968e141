#include "backend/cuda_fault.h"

#include "base/check.h"

namespace mmengine::cuda {
namespace {

struct Words {
  const char* op;
  std::string text;
};

Words offsets_words(const char* name, const Fault& f, bool ends) {
  if (ends) return {"begin", str(name, ": expected 0 to ", f.a, ", got ", f.b, " to ", f.c)};
  return {"begin", str(name, "[", f.index, "]: expected at least ", f.a, ", got ", f.b)};
}

Words words_of(const Fault& f) {
  switch (f.kind) {
    case FaultKind::cu_rows_ends:
    case FaultKind::cu_rows_order:
      return offsets_words("cu_rows", f, f.kind == FaultKind::cu_rows_ends);
    case FaultKind::cu_logits_ends:
    case FaultKind::cu_logits_order:
      return offsets_words("cu_logits", f, f.kind == FaultKind::cu_logits_ends);
    case FaultKind::slot:
      return {"begin", str("slot[", f.index, "]: expected 0 to ", f.a, ", got ", f.b)};
    case FaultKind::logits_row:
      return {"begin",
              str("logits_row[", f.index, "]: expected a row of sequence ", f.a, ", got ", f.b)};
    case FaultKind::table_update:
      return {"begin", str("table_update[", f.index, "]: expected a slot, an index of its table ",
                           "and a block, got ", f.a, ", ", f.b, ", ", f.c)};
    case FaultKind::positions:
      return {"begin", str("sequence ", f.index, ": expected positions 0 to ", f.a, ", got ", f.b,
                           " to ", f.c)};
    case FaultKind::pair:
      return {"copy_blocks",
              str("pairs[", f.index, "]: expected two blocks, got ", f.a, " and ", f.b)};
    case FaultKind::id:
      return {"embed", str("ids[", f.index, "]: expected 0 to ", f.a, ", got ", f.b)};
    case FaultKind::none:
      break;
  }
  return {"cuda", str("expected a known kind of fault, got ", static_cast<int>(f.kind))};
}

}  // namespace

void check_fault(const Fault& fault) {
  if (fault.count == 0) return;
  const Words words = words_of(fault);
  fail(ErrorCode::engine_dead, words.op, words.text);
}

}  // namespace mmengine::cuda
