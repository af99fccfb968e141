// What a kernel found wrong in its input and could not tell by an exception: the first finding
// since the host last looked. The host looks whenever it waits for the device, and throws it.
#pragma once

#include <cstdint>

namespace mmengine::cuda {

enum class FaultKind : std::int32_t {  // {index}, {a}, {b}, {c} are fields of Fault
  none,
  cu_rows_ends,     // begin: cu_rows: expected 0 to {a}, got {b} to {c}
  cu_rows_order,    // begin: cu_rows[{index}]: expected at least {a}, got {b}
  cu_logits_ends,   // the same of cu_logits
  cu_logits_order,  //
  slot,             // begin: slot[{index}]: expected 0 to {a}, got {b}
  logits_row,       // begin: logits_row[{index}]: expected a row of sequence {a}, got {b}
  table_update,     // begin: table_update[{index}]: got {a}, {b}, {c}
  positions,        // begin: sequence {index}: expected positions 0 to {a}, got {b} to {c}
  pair,             // copy_blocks: pairs[{index}]: expected two blocks, got {a} and {b}
  id,               // embed: ids[{index}]: expected 0 to {a}, got {b}
};

struct Fault {
  std::uint32_t count = 0;  // reports; the first one's fields follow
  FaultKind kind = FaultKind::none;
  std::int32_t index = 0, a = 0, b = 0, c = 0;
};

}  // namespace mmengine::cuda
