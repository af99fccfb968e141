// mmengine::Error -> the class of mmengine.errors that belongs to its code, with its attributes.
// Shared by every extension module of the project; each registers its own translator, because the
// exception's type is local to the module it was linked into.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "mmengine/error.h"

namespace mmengine {

inline const char* error_class(ErrorCode code) {
  switch (code) {
    case ErrorCode::usage:
      return "UsageError";
    case ErrorCode::model_format:
      return "ModelFormatError";
    case ErrorCode::model_not_found:
      return "ModelNotFoundError";
    case ErrorCode::unsupported_model:
      return "UnsupportedModelError";
    case ErrorCode::engine_dead:
      return "EngineDeadError";
    case ErrorCode::resource:
      return "ResourceError";
    case ErrorCode::output:
      return "OutputError";
    case ErrorCode::overloaded:
      return "OverloadedError";
    case ErrorCode::request:
      return "RequestError";
    case ErrorCode::cancelled:
      return "CancelledError";
    case ErrorCode::fork:
      return "ForkError";
  }
  return "Error";
}

// Paths need not be UTF-8; a message must never fail to become a str.
inline pybind11::object text_or_none(std::string_view text) {
  if (text.empty()) return pybind11::none();
  return pybind11::reinterpret_steal<pybind11::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

template <class Number>
pybind11::object number_or_none(Number value) {
  if (value < 0) return pybind11::none();
  return pybind11::cast(value);
}

inline void set_python_error(ErrorCode code, std::string_view message, const std::string& where,
                             const ErrorDetails& details) {
  namespace py = pybind11;
  const py::object type = py::module_::import("mmengine.errors").attr(error_class(code));
  const py::object value = type(text_or_none(message), py::arg("where") = text_or_none(where),
                                py::arg("code") = text_or_none(details.reason),
                                py::arg("file") = text_or_none(details.file),
                                py::arg("tensor") = text_or_none(details.tensor),
                                py::arg("offset") = number_or_none(details.offset),
                                py::arg("param") = text_or_none(details.param),
                                py::arg("needed") = number_or_none(details.needed),
                                py::arg("available") = number_or_none(details.available),
                                py::arg("retry_after") = number_or_none(details.retry_after));
  PyErr_SetObject(type.ptr(), value.ptr());
}

// Call once in the module's initialisation. Out of memory becomes ResourceError.
inline void register_errors(pybind11::module_&) {
  pybind11::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      set_python_error(error.code(), error.what(), error.where(), error.details());
    } catch (const std::bad_alloc&) {
      set_python_error(ErrorCode::resource, "memory: an allocation failed", "memory", {});
    }
  });
}

}  // namespace mmengine
