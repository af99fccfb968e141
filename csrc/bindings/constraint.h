// A TokenConstraint whose rules are a Python object.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "mmengine/types.h"

namespace mmengine {

// `rules` has fill_mask(bits: uint32 array [words], to be written), accept(token) -> bool,
// rollback(n), clone() and forced() -> list of tokens; see TokenConstraint. They are called with
// the GIL, by threads of the engine. TypeError if one of them is missing.
std::unique_ptr<TokenConstraint> constraint_of(pybind11::object rules);

}  // namespace mmengine
