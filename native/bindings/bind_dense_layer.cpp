#include <mutex>
#include <string>
#include <type_traits>

#include "arrays.h"
#include "bindings.h"
#include "persia/dense_layer.h"

namespace {

using namespace persia_bindings;

// Threads for one call at a time.
class Team {
  public:
    explicit Team(unsigned size) : team_(size) {}

    template <typename Use>
    void run(const Use& use) {
        const py::gil_scoped_release nogil;
        const std::lock_guard<std::mutex> lock(mutex_);
        use(team_);
    }

  private:
    persia::ThreadTeam team_;
    std::mutex mutex_;
};

py::ssize_t length(std::size_t n) { return static_cast<py::ssize_t>(n); }

// A call's inputs as the core sees them, and what follows from their shapes and the layer's.
struct Call {
    Call(const py::object& values, const py::object& first, const py::object& rest, std::size_t num_copied,
         const py::object& weight, bool relu) {
        inputs.interacts = values.is_none();
        if (inputs.interacts == rest.is_none())
            throw py::value_error("expected values, or rest with or without first, got both or neither");
        if (inputs.interacts)
            take_vectors(first, rest, num_copied);
        else
            inputs.values = span_of<const float>(
                check_array(values, "values", {kFloat32}, {any('B'), any('K')}, Access::kRead));
        const py::array given = inputs.interacts ? py::array() : py::reinterpret_borrow<py::array>(values);
        layer.num_samples =
            inputs.interacts ? inputs.shape.num_samples : static_cast<std::size_t>(given.shape(0));
        layer.num_inputs = inputs.interacts ? inputs.shape.width() : static_cast<std::size_t>(given.shape(1));
        const py::array weights =
            check_array(weight, "weight", {kFloat32}, {any('N'), length(layer.num_inputs)}, Access::kRead);
        layer.num_outputs = static_cast<std::size_t>(weights.shape(0));
        layer.relu = relu;
        layer.weight = span_of<const float>(weights);
    }

    // An array [B, N].
    py::array outputs(const py::object& object, const std::string& name, Access access) const {
        return check_array(object, name, {kFloat32}, {length(layer.num_samples), length(layer.num_outputs)},
                           access);
    }

    py::array bias(const py::object& object, const std::string& name, Access access) const {
        return check_array(object, name, {kFloat32}, {length(layer.num_outputs)}, access);
    }

    persia::DenseLayer layer{};
    persia::DenseInputs inputs{};

  private:
    void take_vectors(const py::object& first, const py::object& rest, std::size_t num_copied) {
        const py::array array =
            check_array(rest, "rest", {kFloat32}, {any('B'), any('V'), any('D')}, Access::kRead);
        persia::InteractionShape& shape = inputs.shape;
        shape = {static_cast<std::size_t>(array.shape(0)),
                 static_cast<std::size_t>(array.shape(1)) + !first.is_none(),
                 static_cast<std::size_t>(array.shape(2)), num_copied};
        inputs.vectors.rest = span_of<const float>(array);
        if (!first.is_none())
            inputs.vectors.first = span_of<const float>(
                check_array(first, "first", {kFloat32}, {array.shape(0), array.shape(2)}, Access::kRead));
        if (num_copied > shape.num_vectors) {
            throw py::value_error("num_copied: expected at most the number of vectors " +
                                  std::to_string(shape.num_vectors) + ", got " + std::to_string(num_copied));
        }
    }
};

void forward(const py::object& values, const py::object& first, const py::object& rest,
             std::size_t num_copied, const py::object& weight, const py::object& bias, bool relu,
             const py::object& out, Team& team) {
    Call call(values, first, rest, num_copied, weight, relu);
    call.layer.bias = span_of<const float>(call.bias(bias, "bias", Access::kRead));
    const auto to = span_of<float>(call.outputs(out, "out", Access::kWrite));
    team.run(
        [&](persia::ThreadTeam& threads) { persia::dense_forward(call.layer, call.inputs, to, threads); });
}

void backward(const py::object& values, const py::object& first, const py::object& rest,
              std::size_t num_copied, const py::object& weight, bool relu, const py::object& out,
              const py::object& gradient, const py::object& values_gradient, const py::object& first_gradient,
              const py::object& rest_gradient, const py::object& weight_gradient,
              const py::object& bias_gradient, Team& team) {
    const Call call(values, first, rest, num_copied, weight, relu);
    const auto made = span_of<const float>(call.outputs(out, "out", Access::kRead));
    const auto from = span_of<const float>(call.outputs(gradient, "gradient", Access::kRead));
    const py::ssize_t samples = length(call.layer.num_samples);
    persia::DenseGradients to{};
    to.weight = span_of<float>(check_array(weight_gradient, "weight_gradient", {kFloat32},
                                           {length(call.layer.num_outputs), length(call.layer.num_inputs)},
                                           Access::kWrite));
    to.bias = span_of<float>(call.bias(bias_gradient, "bias_gradient", Access::kWrite));
    if (!values.is_none() && !values_gradient.is_none())
        to.values = span_of<float>(check_array(values_gradient, "values_gradient", {kFloat32},
                                               {samples, length(call.layer.num_inputs)}, Access::kWrite));
    if (values.is_none() && !rest_gradient.is_none()) {
        const persia::InteractionShape& shape = call.inputs.shape;
        const py::ssize_t dim = length(shape.dim);
        if (first.is_none() != first_gradient.is_none())
            throw py::value_error("first_gradient must be given if and only if first and rest_gradient are");
        to.vectors.rest = span_of<float>(
            check_array(rest_gradient, "rest_gradient", {kFloat32},
                        {samples, length(shape.num_vectors - !first.is_none()), dim}, Access::kWrite));
        if (!first.is_none())
            to.vectors.first = span_of<float>(
                check_array(first_gradient, "first_gradient", {kFloat32}, {samples, dim}, Access::kWrite));
    }
    team.run([&](persia::ThreadTeam& threads) {
        persia::dense_backward(call.layer, call.inputs, made, from, to, threads);
    });
}

constexpr const char* kForward =
    R"(Writes to `out` [B, N] a linear layer of `values` [B, K], with `relu` and a ReLU behind it.

With `values` None it is applied to DLRM's interaction, which is never written to memory: the first C
vectors of each sample, then the products of all pairs, (1, 0), (2, 0), (2, 1), (3, 0), ... Vector 0 is in
`first` [B, D], the others in `rest` [B, V-1, D]; or, with `first` None, all in `rest` [B, V, D].

Shapes: B samples, C = num_copied, K = C D + V (V - 1) / 2; weight [N, K], bias [N]; float32.)";

constexpr const char* kBackward =
    R"(Writes the gradients of the inputs, shaped like them, and of the weight [N, K] and bias [N].

Shapes: as in `linear_forward`; `out` is the forward's and `gradient` [B, N] its gradient. The inputs' are
left out where values_gradient or rest_gradient is None; else first_gradient goes with first.)";

}  // namespace

void bind_dense_layer(py::module_& m) {
    py::class_<Team>(m, "ThreadTeam", "Is a number of threads that linear layers are computed by.")
        .def(py::init([](unsigned size) {
                 if (size < 1) throw py::value_error("size: expected at least 1, got 0");
                 return std::make_unique<Team>(size);
             }),
             py::arg("size"), "Starts all threads but the one that calls.");
    m.def("linear_forward", &forward, py::arg("values"), py::arg("first"), py::arg("rest"), py::kw_only(),
          py::arg("num_copied"), py::arg("weight"), py::arg("bias"), py::arg("relu"), py::arg("out"),
          py::arg("team"), kForward);
    m.def("linear_backward", &backward, py::arg("values"), py::arg("first"), py::arg("rest"), py::kw_only(),
          py::arg("num_copied"), py::arg("weight"), py::arg("relu"), py::arg("out"), py::arg("gradient"),
          py::arg("values_gradient"), py::arg("first_gradient"), py::arg("rest_gradient"),
          py::arg("weight_gradient"), py::arg("bias_gradient"), py::arg("team"), kBackward);
}
