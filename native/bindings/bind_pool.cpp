#include <pybind11/stl.h>

#include <tuple>

#include "arrays.h"
#include "bindings.h"
#include "persia/pool.h"
#include "wire_arrays.h"

namespace {

using namespace persia_bindings;
using persia::AlignedArray;
using persia::Pooling;

using Features = std::vector<std::tuple<std::size_t, std::size_t, std::string, py::object>>;
using Weights = std::vector<py::object>;  // of each feature, or none at all

void check(bool ok, const std::string& message) {
    if (!ok) throw py::value_error("gather_pool: " + message);
}

Pooling pooling_of(const std::string& name) {
    if (name == "sum") return Pooling::kSum;
    if (name == "mean") return Pooling::kMean;
    if (name == "sqrtn") return Pooling::kSqrtn;
    if (name == "jagged") return Pooling::kJagged;
    check(name == "sequence", "pooling must be sum, mean, sqrtn, sequence or jagged, got " + name);
    return Pooling::kSequence;
}

// The group as the core sees it. The Features and Weights hold the arrays that it points into.
persia::PoolGroup group_of(const Features& features, const Weights& weights, std::size_t num_samples,
                           std::size_t dim, std::size_t num_ids) {
    persia::PoolGroup group{dim, num_samples, {}};
    check(
        weights.empty() || weights.size() == features.size(),
        "expected weights (or None) for each feature, or none at all, got " + std::to_string(weights.size()));
    for (const auto& [begin, end, pooling, bags] : features) {
        check(begin <= end && end <= num_ids, "feature ids [" + std::to_string(begin) + ", " +
                                                  std::to_string(end) + ") are outside the batch's " +
                                                  std::to_string(num_ids));
        persia::Span<const std::uint32_t> offsets;
        if (!bags.is_none()) {
            const auto length = static_cast<py::ssize_t>(num_samples + 1);
            offsets = span_of<const std::uint32_t>(check_array(bags, "bags", {kUint32}, {length}));
        }
        persia::Span<const float> factors;
        if (!weights.empty() && !weights[group.features.size()].is_none()) {
            const auto length = static_cast<py::ssize_t>(end - begin);
            factors = span_of<const float>(
                check_array(weights[group.features.size()], "weights", {kFloat32}, {length}));
        }
        group.features.push_back({begin, end, offsets, pooling_of(pooling), factors});
    }
    return group;
}

std::vector<py::ssize_t> shape(std::initializer_list<std::size_t> sizes) {
    return std::vector<py::ssize_t>(sizes.begin(), sizes.end());
}

// indices: uint16 or uint32 [N].
class Indices {
  public:
    explicit Indices(const py::object& object)
        : array_(check_array(object, "indices", {kUint16, kUint32}, {any('N')})) {}

    std::size_t size() const { return static_cast<std::size_t>(array_.size()); }
    // run(span of the indices), without the GIL
    template <typename Run>
    void with(const Run& run) const {
        const bool narrow = has_dtype(array_, kUint16);
        const py::gil_scoped_release nogil;
        narrow ? run(span_of<const std::uint16_t>(array_)) : run(span_of<const std::uint32_t>(array_));
    }

  private:
    py::array array_;
};

py::tuple forward(const py::object& rows, const py::object& indices_object, const Features& features,
                  std::size_t num_samples, std::size_t dim, const Weights& weights) {
    const persia::ConstRows data =
        rows_of<const std::byte>(rows, "rows", any('U'), static_cast<py::ssize_t>(dim));
    const Indices indices(indices_object);
    const auto group = group_of(features, weights, num_samples, dim, indices.size());
    group.check();

    const std::size_t num_pooled = group.num_pooled();
    AlignedArray<float> pooled(num_samples * num_pooled * dim);
    std::vector<AlignedArray<float>> values;
    std::vector<AlignedArray<bool>> masks;
    std::vector<persia::PoolSequence> sequences;
    for (const auto& feature : group.features) {
        if (feature.is_pooled()) continue;
        const std::size_t count = group.num_rows(feature), length = group.num_vectors(feature);
        values.emplace_back(count * length * dim);
        masks.emplace_back(feature.pooling == Pooling::kJagged ? 0 : count * length);
        sequences.push_back({values.back(), masks.back(), length});
    }
    indices.with([&](auto ids) { persia::gather_pool_forward(group, data, ids, pooled, sequences); });
    py::list outputs;
    std::size_t s = 0;
    for (const auto& feature : group.features) {
        if (feature.is_pooled()) continue;
        const std::size_t count = group.num_rows(feature), length = sequences[s].length;
        if (feature.pooling == Pooling::kJagged) {
            outputs.append(py::make_tuple(to_numpy(std::move(values[s]), shape({count, dim})), py::none()));
        } else {
            outputs.append(py::make_tuple(to_numpy(std::move(values[s]), shape({count, length, dim})),
                                          to_numpy(std::move(masks[s]), shape({count, length}))));
        }
        ++s;
    }
    return py::make_tuple(to_numpy(std::move(pooled), shape({num_samples, num_pooled, dim})), outputs);
}

py::tuple backward(const py::object& pooled_gradient, const std::vector<py::object>& sequence_gradients,
                   const py::object& indices_object, const Features& features, std::size_t num_samples,
                   std::size_t num_rows, std::size_t dim, const std::string& wire_name,
                   const Weights& weights) {
    const persia::Wire wire = wire_named(wire_name);
    const Indices indices(indices_object);
    const auto group = group_of(features, weights, num_samples, dim, indices.size());
    group.check();

    const auto length_of = [](std::size_t n) { return static_cast<py::ssize_t>(n); };
    const auto gradient_of = [&](const py::object& object, std::size_t middle, const char* name) {
        if (object.is_none()) return persia::Span<const float>();
        return span_of<const float>(check_array(object, name, {kFloat32},
                                                {length_of(num_samples), length_of(middle), length_of(dim)}));
    };
    const auto pooled = gradient_of(pooled_gradient, group.num_pooled(), "pooled_gradient");
    check(sequence_gradients.size() + group.num_pooled() == group.features.size(),
          "expected one gradient (or None) per feature that isn't pooled, got " +
              std::to_string(sequence_gradients.size()));
    std::vector<persia::PoolSequenceGradient> sequences;
    for (const auto& feature : group.features) {
        if (feature.is_pooled()) continue;
        const py::object& gradient = sequence_gradients[sequences.size()];
        const std::size_t length = group.num_vectors(feature);
        if (feature.pooling != Pooling::kJagged) {
            sequences.push_back({gradient_of(gradient, length, "sequence_gradient"), length});
            continue;
        }
        persia::Span<const float> values;
        if (!gradient.is_none()) {
            values = span_of<const float>(check_array(gradient, "jagged_gradient", {kFloat32},
                                                      {length_of(group.num_rows(feature)), length_of(dim)}));
        }
        sequences.push_back({values, length});
    }
    const py::array row_gradients = wire_rows(wire, num_rows, dim);
    const persia::Rows to{data_of<std::byte>(row_gradients), wire, num_rows};
    bool finite = true;
    indices.with([&](auto ids) { finite = persia::gather_pool_backward(group, pooled, sequences, ids, to); });
    return py::make_tuple(row_gradients, finite);
}

constexpr const char* kForward =
    R"(Pools one group's rows: returns pooled [B, P, D], and (values, mask) of each feature that isn't pooled.

Shapes: rows [U, D] in a wire format; indices uint16 or uint32 [N], the whole batch's; B = num_samples; P
features that are pooled; L the longest sequence and at least 1. A feature is (first id, end id, "sum" |
"mean" | "sqrtn" | "sequence" | "jagged", bag offsets uint32 [B+1] or None for one id per sample).
weights: for each feature None or what its rows are multiplied by before they are summed, float32 [its ids];
only for "sum" with bags. values, mask: a sequence's [B, L, D] and [B, L], a jagged feature's [its ids, D] and
None.
Features come in the order of their ids; the results keep that order. An empty bag gives zeros; sequences
are left-aligned, with zeros behind.
Raises: ValueError for bags or weights that don't fit, IndexError for an index outside the rows.)";

constexpr const char* kBackward =
    R"(Returns the gradients of the group's rows [U, D] in a wire format, and whether all of them are finite.

A row that no id uses gets zeros. What isn't finite is judged in fp32, before the wire format.
Shapes: as in `gather_pool_forward`; U = num_rows. A gradient of an output may be None: zeros.
A row's sum goes over the ids that use it in ascending order, in fp32.
Raises: ValueError for shapes that don't fit, IndexError for an index outside the rows.)";

}  // namespace

void bind_pool(py::module_& m) {
    m.def("gather_pool_forward", &forward, py::arg("rows"), py::arg("indices"), py::kw_only(),
          py::arg("features"), py::arg("num_samples"), py::arg("dim"), py::arg("weights") = Weights(),
          kForward);
    m.def("gather_pool_backward", &backward, py::arg("pooled_gradient"), py::arg("sequence_gradients"),
          py::arg("indices"), py::kw_only(), py::arg("features"), py::arg("num_samples"), py::arg("num_rows"),
          py::arg("dim"), py::arg("wire") = "fp32", py::arg("weights") = Weights(), kBackward);
}
