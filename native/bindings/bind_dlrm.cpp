#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "persia/dlrm.h"
#include "persia/wide.h"
#include "team.h"

namespace {

using namespace persia_bindings;
using persia::AlignedArray;
using Parameters = std::vector<std::pair<py::object, py::object>>;  // weight and bias of each layer

py::ssize_t length(std::size_t n) { return static_cast<py::ssize_t>(n); }

// Layers whose first takes `width` inputs; each takes what the one before it gives.
std::vector<persia::DenseLayer> layers_of(const Parameters& parameters, const std::string& name,
                                          std::size_t width) {
    std::vector<persia::DenseLayer> layers;
    for (const auto& [weight, bias] : parameters) {
        const std::string at = name + "[" + std::to_string(layers.size()) + "]";
        const py::array weights =
            check_array(weight, at + ".weight", {kFloat32}, {any('N'), length(width)}, Access::kRead);
        const py::array biases = check_array(bias, at + ".bias", {kFloat32}, {weights.shape(0)});
        const auto outputs = static_cast<std::size_t>(weights.shape(0));
        layers.push_back({width, outputs, span_of<const float>(weights), span_of<const float>(biases)});
        width = outputs;
    }
    return layers;
}

// The network as the core sees it, in arrays that the caller holds.
persia::Dlrm network_of(const py::object& dense, const py::object& vectors, std::size_t num_copied,
                        const Parameters& bottom, const Parameters& top, bool bf16) {
    const py::array given = check_array(vectors, "vectors", {kFloat32}, {any('B'), any('V'), any('D')});
    const auto dim = static_cast<std::size_t>(given.shape(2));
    const auto num_vectors = static_cast<std::size_t>(given.shape(1)) + !bottom.empty();
    persia::Dlrm dlrm{};
    if (bf16 && !persia::has_bf16()) throw py::value_error("bf16: this processor doesn't have AVX512_BF16");
    dlrm.bf16 = bf16;
    dlrm.num_samples = static_cast<std::size_t>(given.shape(0));
    dlrm.vectors = span_of<const float>(given);
    if (dense.is_none() != bottom.empty())
        throw py::value_error("expected dense and layers of bottom, got only one of them");
    if (!dense.is_none()) {
        const py::array values = check_array(dense, "dense", {kFloat32}, {given.shape(0), any('K')});
        dlrm.dense = span_of<const float>(values);
        dlrm.bottom = layers_of(bottom, "bottom", static_cast<std::size_t>(values.shape(1)));
        if (dlrm.bottom.back().num_outputs != dim)
            throw py::value_error("bottom: expected as many outputs as the vectors have elements, " +
                                  std::to_string(dim) + ", got " +
                                  std::to_string(dlrm.bottom.back().num_outputs));
    }
    if (num_copied > num_vectors)
        throw py::value_error("num_copied: expected at most the number of vectors " +
                              std::to_string(num_vectors) + ", got " + std::to_string(num_copied));
    dlrm.shape = {num_vectors, dim, num_copied};
    if (top.empty()) throw py::value_error("top: expected layers, got none");
    dlrm.top = layers_of(top, "top", dlrm.shape.width());
    return dlrm;
}

py::tuple forward(const py::object& dense, const py::object& vectors, std::size_t num_copied,
                  const Parameters& bottom, const Parameters& top, Team& team, bool bf16) {
    const persia::Dlrm dlrm = network_of(dense, vectors, num_copied, bottom, top, bf16);
    const std::size_t num_outputs = dlrm.top.back().num_outputs;
    AlignedArray<float> kept(dlrm.kept_size()), out(dlrm.num_samples * num_outputs);
    team.run([&](persia::ThreadTeam& threads) { persia::dlrm_forward(dlrm, kept, out, threads); });
    return py::make_tuple(to_numpy(std::move(out), {length(dlrm.num_samples), length(num_outputs)}),
                          to_numpy(std::move(kept)));
}

// New arrays for the gradients of layers, and where in them the core writes.
py::list gradients_of(const std::vector<persia::DenseLayer>& layers,
                      std::vector<persia::DlrmGradients::Layer>& to) {
    py::list made;
    for (const persia::DenseLayer& layer : layers) {
        const py::array_t<float> weight({length(layer.num_outputs), length(layer.num_inputs)});
        const py::array_t<float> bias(length(layer.num_outputs));
        to.push_back({span_of<float>(weight), span_of<float>(bias)});
        made.append(weight);
        made.append(bias);
    }
    return made;
}

py::tuple backward(const py::object& dense, const py::object& vectors, std::size_t num_copied,
                   const Parameters& bottom, const Parameters& top, const py::object& kept,
                   const py::object& gradient, bool wants_dense, bool wants_vectors, Team& team, bool bf16) {
    const persia::Dlrm dlrm = network_of(dense, vectors, num_copied, bottom, top, bf16);
    const auto made = span_of<const float>(check_array(kept, "kept", {kFloat32}, {length(dlrm.kept_size())}));
    const auto from = span_of<const float>(check_array(
        gradient, "gradient", {kFloat32}, {length(dlrm.num_samples), length(dlrm.top.back().num_outputs)}));
    persia::DlrmGradients to{};
    py::object dense_gradient = py::none(), vectors_gradient = py::none();
    const auto like = [](const py::object& object, persia::Span<float>& span) {
        const auto array = py::reinterpret_borrow<py::array>(object);
        AlignedArray<float> values(static_cast<std::size_t>(array.size()));
        span = {values.data(), values.size()};
        return to_numpy(std::move(values), {array.shape(), array.shape() + array.ndim()});
    };
    if (wants_dense && !dense.is_none()) dense_gradient = like(dense, to.dense);
    if (wants_vectors) vectors_gradient = like(vectors, to.vectors);
    py::list parameters = gradients_of(dlrm.bottom, to.bottom);
    for (const py::handle& array : gradients_of(dlrm.top, to.top)) parameters.append(array);
    team.run([&](persia::ThreadTeam& threads) { persia::dlrm_backward(dlrm, made, from, to, threads); });
    return py::make_tuple(dense_gradient, vectors_gradient, parameters);
}

constexpr const char* kForward =
    R"(Returns DLRM's logits [B, N of the last layer of `top`], and what its backward needs, in one array.

`top` is computed on the first C vectors of each sample and then the products of all pairs, (1, 0), (2, 0),
(2, 1), (3, 0), ... Vector 0 is what `bottom` makes of `dense`, the others are `vectors`; without layers in
`bottom` and with None as `dense` all are in `vectors`. A ReLU is behind every layer but the last of `top`.
Results don't depend on the number of threads. With `bf16`, which needs `has_bf16()`, the factors of the layers'
products are rounded to it, in sums of float32, which are rounded only as factors of the next.

Shapes: B samples, dense [B, K], vectors [B, V-1, D] or [B, V, D], C = num_copied; each layer is (weight
[N, K], bias [N]), the first of `top` with K = C D + V (V - 1) / 2; float32.)";

constexpr const char* kBackward =
    R"(Returns the gradients of `dense`, of `vectors`, and a list of those of each layer's weight and bias.

The first two are None unless wanted; the list has the layers of `bottom` first.

Shapes: as in `dlrm_forward`; `kept` is what that returned, `gradient` that of its logits.)";

}  // namespace

void bind_dlrm(py::module_& m) {
    py::class_<Team>(m, "ThreadTeam", "Is a number of threads that dense networks are computed by.")
        .def(py::init([](unsigned size) {
                 if (size < 1) throw py::value_error("size: expected at least 1, got 0");
                 return std::make_unique<Team>(size);
             }),
             py::arg("size"), "Starts all threads but the one that calls.");
    m.def("has_bf16", &persia::has_bf16, "Returns whether the processor multiplies pairs of bf16.");
    m.def("dlrm_forward", &forward, py::arg("dense"), py::arg("vectors"), py::kw_only(),
          py::arg("num_copied"), py::arg("bottom"), py::arg("top"), py::arg("team"), py::arg("bf16") = false,
          kForward);
    m.def("dlrm_backward", &backward, py::arg("dense"), py::arg("vectors"), py::kw_only(),
          py::arg("num_copied"), py::arg("bottom"), py::arg("top"), py::arg("kept"), py::arg("gradient"),
          py::arg("wants_dense"), py::arg("wants_vectors"), py::arg("team"), py::arg("bf16") = false,
          kBackward);
}
