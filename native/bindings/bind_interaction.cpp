#include <string>
#include <type_traits>

#include "arrays.h"
#include "bindings.h"
#include "persia/interaction.h"

namespace {

using namespace persia_bindings;

// The arrays of a call as the core sees them; checks all that are given.
template <typename Float>
persia::InteractionVectors<Float> vectors_of(const py::object& first, const std::string& first_name,
                                             const py::object& rest, const std::string& rest_name,
                                             persia::InteractionShape& shape) {
    constexpr Access access = std::is_const_v<Float> ? Access::kRead : Access::kWrite;
    const py::array array = check_array(rest, rest_name, {kFloat32}, {any('B'), any('V'), any('D')}, access);
    shape.num_samples = static_cast<std::size_t>(array.shape(0));
    shape.num_vectors = static_cast<std::size_t>(array.shape(1));
    shape.dim = static_cast<std::size_t>(array.shape(2));
    if (first.is_none()) return {{}, span_of<Float>(array)};
    ++shape.num_vectors;
    return {
        span_of<Float>(check_array(first, first_name, {kFloat32}, {array.shape(0), array.shape(2)}, access)),
        span_of<Float>(array)};
}

void check_copied(const persia::InteractionShape& shape) {
    if (shape.num_copied > shape.num_vectors) {
        throw py::value_error("num_copied: expected at most the number of vectors " +
                              std::to_string(shape.num_vectors) + ", got " +
                              std::to_string(shape.num_copied));
    }
}

// What both directions are given, [B, W].
py::array check_pairs(const py::object& object, const std::string& name,
                      const persia::InteractionShape& shape, Access access) {
    return check_array(object, name, {kFloat32},
                       {static_cast<py::ssize_t>(shape.num_samples), static_cast<py::ssize_t>(shape.width())},
                       access);
}

void forward(const py::object& first, const py::object& rest, std::size_t num_copied, const py::object& out) {
    persia::InteractionShape shape{0, 0, 0, num_copied};
    const auto vectors = vectors_of<const float>(first, "first", rest, "rest", shape);
    check_copied(shape);
    const auto to = span_of<float>(check_pairs(out, "out", shape, Access::kWrite));
    const py::gil_scoped_release nogil;
    persia::interaction_forward(shape, vectors, to);
}

void backward(const py::object& first, const py::object& rest, std::size_t num_copied,
              const py::object& gradient, const py::object& first_gradient, const py::object& rest_gradient) {
    persia::InteractionShape shape{0, 0, 0, num_copied}, out_shape{0, 0, 0, num_copied};
    const auto vectors = vectors_of<const float>(first, "first", rest, "rest", shape);
    check_copied(shape);
    const auto from = span_of<const float>(check_pairs(gradient, "gradient", shape, Access::kRead));
    if (first.is_none() != first_gradient.is_none())
        throw py::value_error("first_gradient must be given if and only if first is");
    const auto length = [](std::size_t n) { return static_cast<py::ssize_t>(n); };
    check_array(rest_gradient, "rest_gradient", {kFloat32},
                {length(shape.num_samples), length(shape.num_vectors - !first.is_none()), length(shape.dim)},
                Access::kWrite);
    const auto out =
        vectors_of<float>(first_gradient, "first_gradient", rest_gradient, "rest_gradient", out_shape);
    const py::gil_scoped_release nogil;
    persia::interaction_backward(shape, vectors, from, out);
}

constexpr const char* kForward =
    R"(Writes to `out` [B, W] the first C vectors, then the products of all pairs.

Shapes: B samples, V vectors of dim D, C copied vectors, P = V (V - 1) / 2 pairs, W = C D + P; float32.
Vector 0 of a sample is in `first` [B, D], the others in `rest` [B, V-1, D]; or, with `first` None, all in
`rest` [B, V, D]. Pairs are in the order (1, 0), (2, 0), (2, 1), (3, 0), ...)";

constexpr const char* kBackward =
    R"(Writes the vectors' gradients, shaped like the vectors, from that of the forward's `out` [B, W].

Shapes: as in `interaction_forward`; `first_gradient` is None if and only if `first` is.)";

}  // namespace

void bind_interaction(py::module_& m) {
    m.def("interaction_forward", &forward, py::arg("first"), py::arg("rest"), py::kw_only(),
          py::arg("num_copied"), py::arg("out"), kForward);
    m.def("interaction_backward", &backward, py::arg("first"), py::arg("rest"), py::kw_only(),
          py::arg("num_copied"), py::arg("gradient"), py::arg("first_gradient"), py::arg("rest_gradient"),
          kBackward);
}
