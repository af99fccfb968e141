// The part of mmengine._core that plans models: see mmengine/forecast.h.
#pragma once

#include <pybind11/pybind11.h>

namespace mmengine {

void bind_forecast(pybind11::module_& m);

}  // namespace mmengine
