#include "bindings.h"
#include "persia/interaction.h"
#include "table_arrays.h"

namespace {

using namespace persia_bindings;

// The arrays of a call as the core sees them; checks all that are given.
template <typename Float>
persia::InteractionVectors<Float> vectors_of(const py::object& first, const py::array& rest,
                                             persia::InteractionShape& shape, Access access) {
    if (rest.ndim() != 3) {
        throw py::value_error("rest: expected a float32 array of shape [B, V, D], got " +
                              array_text(rest, access));
    }
    check_array(rest, "rest", {kFloat32}, {rest.shape(0), rest.shape(1), rest.shape(2)}, access);
    shape.num_samples = static_cast<std::size_t>(rest.shape(0));
    shape.num_vectors = static_cast<std::size_t>(rest.shape(1));
    shape.dim = static_cast<std::size_t>(rest.shape(2));
    if (first.is_none()) return {{}, span_of<Float>(rest)};
    const auto array = py::cast<py::array>(first);
    check_array(array, "first", {kFloat32}, {rest.shape(0), rest.shape(2)}, access);
    ++shape.num_vectors;
    return {span_of<Float>(array), span_of<Float>(rest)};
}

void check_copied(const persia::InteractionShape& shape) {
    if (shape.num_copied > shape.num_vectors) {
        throw py::value_error("num_copied: expected at most the number of vectors " +
                              std::to_string(shape.num_vectors) + ", got " +
                              std::to_string(shape.num_copied));
    }
}

void forward(const py::object& first, const py::array& rest, std::size_t num_copied, const py::array& out) {
    persia::InteractionShape shape{0, 0, 0, num_copied};
    const auto vectors = vectors_of<const float>(first, rest, shape, Access::kRead);
    check_copied(shape);
    check_array(out, "out", {kFloat32}, {rest.shape(0), static_cast<py::ssize_t>(shape.width())},
                Access::kWrite);
    const auto to = span_of<float>(out);
    const py::gil_scoped_release nogil;
    persia::interaction_forward(shape, vectors, to);
}

void backward(const py::object& first, const py::array& rest, std::size_t num_copied,
              const py::array& gradient, const py::object& first_gradient, const py::array& rest_gradient) {
    persia::InteractionShape shape{0, 0, 0, num_copied}, out_shape{0, 0, 0, num_copied};
    const auto vectors = vectors_of<const float>(first, rest, shape, Access::kRead);
    check_copied(shape);
    check_array(gradient, "gradient", {kFloat32}, {rest.shape(0), static_cast<py::ssize_t>(shape.width())},
                Access::kRead);
    check_array(rest_gradient, "rest_gradient", {kFloat32}, {rest.shape(0), rest.shape(1), rest.shape(2)},
                Access::kWrite);
    const auto out = vectors_of<float>(first_gradient, rest_gradient, out_shape, Access::kWrite);
    if (shape.num_vectors != out_shape.num_vectors)
        throw py::value_error("first_gradient must be given if and only if first is");
    const auto from = span_of<const float>(gradient);
    const py::gil_scoped_release nogil;
    persia::interaction_backward(shape, vectors, from, out);
}

}  // namespace

void bind_interaction(py::module_& m) {
    m.def("interaction_forward", &forward, py::arg("first"), py::arg("rest"), py::kw_only(),
          py::arg("num_copied"), py::arg("out"));
    m.def("interaction_backward", &backward, py::arg("first"), py::arg("rest"), py::kw_only(),
          py::arg("num_copied"), py::arg("gradient"), py::arg("first_gradient"), py::arg("rest_gradient"));
}
