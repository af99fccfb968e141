#include "kernels/cuda/fault.h"

#include "base/check.h"

namespace mmengine::cuda {
namespace {

std::string offsets_text(const char* name, const Fault& f, bool ends) {
  return ends ? str(name, ": expected 0 to ", f.a, ", got ", f.b, " to ", f.c)
              : str(name, "[", f.index, "]: expected at least ", f.a, ", got ", f.b);
}

}  // namespace

FaultText describe(const Fault& f) {
  switch (f.kind) {
    case FaultKind::cu_rows_ends:
    case FaultKind::cu_rows_order:
      return {"begin", offsets_text("cu_rows", f, f.kind == FaultKind::cu_rows_ends)};
    case FaultKind::cu_logits_ends:
    case FaultKind::cu_logits_order:
      return {"begin", offsets_text("cu_logits", f, f.kind == FaultKind::cu_logits_ends)};
    case FaultKind::slot:
      return {"begin", str("slot[", f.index, "]: expected 0 to ", f.a, ", got ", f.b)};
    case FaultKind::logits_row:
      return {"begin", str("logits_row[", f.index, "]: expected a row of sequence ", f.a, ", got ",
                           f.b)};
    case FaultKind::table_update:
      return {"begin", str("table_update[", f.index, "]: expected a slot, an index in its table, ",
                           "a block, got ", f.a, ", ", f.b, ", ", f.c)};
    case FaultKind::positions:
      return {"begin", str("sequence ", f.index, ": expected positions 0 to ", f.a, ", got ", f.b,
                           " to ", f.c)};
    case FaultKind::pair:
      return {"copy_blocks", str("pairs[", f.index, "]: expected two blocks, got ", f.a, " and ",
                                 f.b)};
    case FaultKind::id:
      return {"embed", str("ids[", f.index, "]: expected 0 to ", f.a, ", got ", f.b)};
    case FaultKind::none:
      break;
  }
  return {"fault", str("expected a kind that is known, got ", static_cast<int>(f.kind))};
}

}  // namespace mmengine::cuda
