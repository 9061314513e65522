#include <pybind11/stl.h>

#include "arrays.h"
#include "bindings.h"
#include "persia/dedup.h"
#include "persia/hash_ids.h"

namespace {

using namespace persia_bindings;

struct Dedup {
    py::array keys, table_offsets, server_offsets, group_offsets, indices, feature_offsets, row_offsets,
        positions;
};

Dedup run(persia::Deduplicator& self, const std::vector<py::object>& values) {
    std::vector<py::array> held;
    std::vector<persia::Span<const persia::Id>> spans;
    for (std::size_t f = 0; f < values.size(); ++f) {
        held.push_back(check_array(values[f], "values[" + std::to_string(f) + "]", {kUint64}, {any('N')}));
        spans.push_back(span_of<const persia::Id>(held.back()));
    }
    persia::DedupResult result;
    {
        const py::gil_scoped_release nogil;
        result = self.run(spans);
    }
    const auto num_tables = static_cast<py::ssize_t>(self.num_tables());
    const auto num_bounds = static_cast<py::ssize_t>(self.num_servers() + 1);
    Dedup dedup;
    dedup.keys = to_numpy(std::move(result.keys));
    dedup.table_offsets = to_numpy(std::move(result.table_offsets));
    dedup.server_offsets = to_numpy(std::move(result.server_offsets), {num_tables, num_bounds});
    dedup.group_offsets = to_numpy(std::move(result.group_offsets));
    if (result.narrow) {
        dedup.indices = to_numpy(std::move(result.narrow_indices));
    } else {
        dedup.indices = to_numpy(std::move(result.wide_indices));
    }
    dedup.feature_offsets = to_numpy(std::move(result.feature_offsets));
    dedup.row_offsets = to_numpy(std::move(result.row_offsets));
    dedup.positions = to_numpy(std::move(result.positions));
    return dedup;
}

py::array_t<std::uint64_t> hash_ids(const py::object& values, std::uint64_t rounds, std::uint64_t size) {
    const py::array ids = check_array(values, "ids", {kUint64}, {any('N')});
    if (rounds == 0 || size == 0 || size > UINT64_MAX / rounds) {
        throw py::value_error("rounds = " + std::to_string(rounds) + ", size = " + std::to_string(size) +
                              ": expected both at least 1 and rounds * size below 2^64");
    }
    py::array_t<std::uint64_t> out(ids.size() * static_cast<py::ssize_t>(rounds));
    const auto from = span_of<const persia::Id>(ids);
    const auto to = span_of<persia::Id>(out);
    {
        const py::gil_scoped_release nogil;
        persia::hash_ids(from, rounds, size, to);
    }
    return out;
}

}  // namespace

void bind_dedup(py::module_& m) {
    py::class_<Dedup>(m, "Dedup")
        .def_readonly("keys", &Dedup::keys)
        .def_readonly("table_offsets", &Dedup::table_offsets)
        .def_readonly("server_offsets", &Dedup::server_offsets)
        .def_readonly("group_offsets", &Dedup::group_offsets)
        .def_readonly("indices", &Dedup::indices)
        .def_readonly("feature_offsets", &Dedup::feature_offsets)
        .def_readonly("row_offsets", &Dedup::row_offsets)
        .def_readonly("positions", &Dedup::positions);
    py::class_<persia::Deduplicator>(m, "Deduplicator")
        .def(py::init([](std::vector<std::uint32_t> tables, std::vector<std::uint32_t> groups,
                         std::vector<std::uint32_t> num_buckets,
                         std::vector<std::vector<std::uint32_t>> bounds) {
                 return std::make_unique<persia::Deduplicator>(persia::DedupPlan{
                     std::move(tables), std::move(groups), std::move(num_buckets), std::move(bounds)});
             }),
             py::kw_only(), py::arg("tables"), py::arg("groups"), py::arg("num_buckets"), py::arg("bounds"))
        .def("run", &run, py::arg("values"));
    m.def("hash_ids", &hash_ids, py::arg("ids"), py::kw_only(), py::arg("rounds"), py::arg("size"));
}
