#include "bindings/constraint.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace mmengine {
namespace {

std::string text_of(const py::error_already_set& error) {
  const auto name = py::str(error.type().attr("__name__")).cast<std::string>();
  try {
    return name + ": " + py::str(error.value()).cast<std::string>();
  } catch (const std::exception&) {
    return name;
  }
}

// Exceptions of Python are objects, which only threads with the GIL may drop: the engine gets their
// text, without a traceback.
template <class Call>
auto with_gil(Call&& call) {
  const py::gil_scoped_acquire gil;
  try {
    return call();
  } catch (const py::error_already_set& error) {
    throw std::runtime_error(text_of(error));
  } catch (const py::cast_error&) {
    throw std::runtime_error("a method of the constraint returned an object of a wrong type");
  }
}

class PyConstraint : public TokenConstraint {
 public:
  explicit PyConstraint(py::object rules) : rules_(std::move(rules)) {}
  PyConstraint(const PyConstraint&) = delete;
  PyConstraint& operator=(const PyConstraint&) = delete;
  ~PyConstraint() override {
    const py::gil_scoped_acquire gil;
    rules_ = py::object();
  }

  void mask(std::uint32_t* bits, std::size_t num_words) override {
    with_gil([&] {
      const py::array_t<std::uint32_t> words(static_cast<py::ssize_t>(num_words));  // may be kept
      rules_.attr("fill_mask")(words);
      std::copy_n(words.data(), num_words, bits);
    });
  }
  bool accept(std::int32_t token) override {
    return with_gil([&] { return rules_.attr("accept")(token).cast<bool>(); });
  }
  void rollback(int num_tokens) override {
    with_gil([&] { rules_.attr("rollback")(num_tokens); });
  }
  std::unique_ptr<TokenConstraint> clone() const override {
    return with_gil([&] { return constraint_of(rules_.attr("clone")()); });
  }
  std::vector<std::int32_t> forced() override {
    return with_gil([&] { return rules_.attr("forced")().cast<std::vector<std::int32_t>>(); });
  }

 private:
  py::object rules_;
};

}  // namespace

std::unique_ptr<TokenConstraint> constraint_of(py::object rules) {
  for (const char* method : {"fill_mask", "accept", "rollback", "clone", "forced"}) {
    if (!py::hasattr(rules, method)) {
      throw py::type_error(std::string("constraint: expected a method ") + method);
    }
  }
  return std::make_unique<PyConstraint>(std::move(rules));
}

}  // namespace mmengine
