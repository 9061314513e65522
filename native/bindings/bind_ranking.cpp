#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "persia/ranking.h"

namespace {

using namespace persia_bindings;

constexpr std::size_t kMostSamples = std::size_t{1} << 31;

py::array number(const py::object& object) {
    const py::array groups = check_array(object, "groups", {kInt64}, {any('N')});
    const auto from = span_of<const std::int64_t>(groups);
    if (from.size() >= kMostSamples)
        throw py::value_error("groups: expected less than 2**31, got " + std::to_string(from.size()));
    const py::array_t<std::uint32_t> numbers(groups.shape(0));
    const auto to = span_of<std::uint32_t>(numbers);
    {
        const py::gil_scoped_release nogil;
        persia::number_groups(from, to);
    }
    return numbers;
}

py::dict rank(const py::object& scores, const py::object& labels, const py::object& weight,
              const py::object& groups, const std::vector<std::uint64_t>& ks, unsigned threads) {
    const py::array array = check_array(scores, "scores", {kFloat32}, {any('N')});
    const py::ssize_t n = array.shape(0);
    persia::ScoredSamples samples{};
    samples.scores = span_of<const float>(array);
    samples.labels = span_of<const float>(check_array(labels, "labels", {kFloat32}, {n}));
    if (!weight.is_none())
        samples.weight = span_of<const double>(check_array(weight, "weight", {kFloat64}, {n}));
    if (!groups.is_none()) {
        samples.groups = span_of<const std::uint32_t>(check_array(groups, "groups", {kUint32}, {n}));
        for (const std::uint32_t group : samples.groups) {
            if (group >= kMostSamples)
                throw py::value_error("groups: expected less than 2**31, got " + std::to_string(group));
            samples.num_groups = std::max<std::size_t>(samples.num_groups, group + 1);
        }
    }
    if (samples.scores.size() >= kMostSamples)
        throw py::value_error("scores: expected less than 2**31, got " + std::to_string(n));
    for (const std::uint64_t k : ks) {
        if (k < 1) throw py::value_error("ks: expected at least 1 each, got 0");
    }
    if (threads < 1) throw py::value_error("threads: expected at least 1, got 0");
    persia::RankMetrics found;
    {
        const py::gil_scoped_release nogil;
        persia::ThreadTeam team(threads);
        found = persia::rank_metrics(samples, ks, team);
    }
    py::dict result;
    result["positives"] = found.positives;
    result["negatives"] = found.negatives;
    result["auc"] = found.auc;
    result["average_precision"] = found.average_precision;
    result["num_groups"] = found.num_groups;
    result["num_one_class"] = found.num_one_class;
    result["num_without_positive"] = found.num_without_positive;
    result["gauc"] = found.gauc;
    result["gauc_of_groups"] = found.gauc_of_groups;
    result["gauc_by_positives"] = found.gauc_by_positives;
    py::list top;
    for (const persia::TopMeans& means : found.top) top.append(py::make_tuple(means.recall, means.ndcg));
    result["top"] = top;
    return result;
}

}  // namespace

void bind_ranking(py::module_& m) {
    m.def("number_groups", &number, py::arg("groups"),
          "Returns numbers from 0 in place of groups, in the order in which they come, uint32 [N].\n\n"
          "Shapes: groups int64 [N].");
    m.def("rank_metrics", &rank, py::arg("scores"), py::arg("labels"), py::arg("weight"), py::arg("groups"),
          py::kw_only(), py::arg("ks"), py::arg("threads"),
          R"(Returns how well scores put labels of 1 before labels of 0, over all samples and within groups.

It has the sums of weights `positives` and `negatives`; `auc` and `average_precision`; `num_groups`, and of
them `num_one_class` and `num_without_positive`; the mean AUC of the groups of both classes, weighted by their
samples `gauc`, alike `gauc_of_groups`, by their positives `gauc_by_positives`; and `top`, the mean recall and
NDCG of each of `ks` over the groups with a positive. What isn't defined is 0. Equal scores count as the mean
over all their orders. A sample of weight 0 counts nowhere; other weights don't count in `top`. The result is
the same to the last bit for any number of threads.

Shapes: scores float32 [N], not NaN; labels float32 [N] of 0 and 1; weight float64 [N], 0 or more, or None;
groups uint32 [N], numbers from 0, or None.)");
}
