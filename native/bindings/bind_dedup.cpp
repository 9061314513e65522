#include <pybind11/stl.h>

#include <memory>

#include "arrays.h"
#include "bindings.h"
#include "persia/dedup.h"
#include "persia/hash_ids.h"

namespace {

using namespace persia_bindings;

struct Dedup {
    py::array keys, table_offsets, server_offsets, group_offsets, indices, feature_offsets, row_offsets,
        positions;
    std::shared_ptr<persia::Shares> shares;
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
    dedup.shares = std::make_shared<persia::Shares>(std::move(result.shares));
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

constexpr const char* kDeduplicator =
    R"(Finds the unique keys of a batch's ids, in the order of the servers that own them.

Shapes: T tables, G groups, F features, P servers, N ids, U unique rows.
tables [F]: the table of each feature. groups [T]: the group of each table (0, then equal or one more).
num_buckets [T]: powers of two. bounds [T][P+1]: the servers' bucket bounds.
Raises: ValueError if they contradict each other.)";

constexpr const char* kRun = R"(Deduplicates one array of ids uint64 per feature; any may be empty.

The order of keys does not depend on the number of servers. Calls from several threads take turns.
Raises: ValueError for more than 2^30 ids of one table, and for 2^32 - 1 or more in all.)";

constexpr const char* kHashIds =
    R"(Returns the indices [N * rounds] that ids uint64 [N] hash to; those of an id lie together.

Round r's are from r * size on.
Raises: ValueError for no round, size 0, and more than 2^64 indices in all.)";

}  // namespace

void bind_dedup(py::module_& m) {
    py::class_<Dedup>(m, "Dedup",
                      "Holds what `Deduplicator.run` found, in fresh arrays on 64-byte boundaries.")
        .def_readonly(
            "keys", &Dedup::keys,
            "uint64 [U] ordered by (table, bucket, first use); features in list order, ids in array order.")
        .def_readonly("table_offsets", &Dedup::table_offsets,
                      "uint32 [T+1] rows of table t are [o[t], o[t+1]).")
        .def_readonly("server_offsets", &Dedup::server_offsets,
                      "uint32 [T, P+1] absolute rows: server p's part of table t is [so[t, p], so[t, p+1]).")
        .def_readonly("group_offsets", &Dedup::group_offsets, "uint32 [G+1] rows of each group.")
        .def_readonly("indices", &Dedup::indices,
                      "[N] row of each id relative to its group's first; uint16 if every group has at most "
                      "65536 rows, else uint32.")
        .def_readonly("feature_offsets", &Dedup::feature_offsets,
                      "uint32 [F+1] ids of feature f are [fo[f], fo[f+1]).")
        .def_readonly("row_offsets", &Dedup::row_offsets,
                      "uint32 [U+1] row u is used at positions[ro[u]:ro[u+1]].")
        .def_readonly("positions", &Dedup::positions,
                      "uint32 [N] ids that use each row, ascending within a row.")
        .def_readonly("shares", &Dedup::shares, "Which rows are whose.");
    py::class_<persia::Deduplicator>(m, "Deduplicator", kDeduplicator)
        .def(py::init([](std::vector<std::uint32_t> tables, std::vector<std::uint32_t> groups,
                         std::vector<std::uint32_t> num_buckets,
                         std::vector<std::vector<std::uint32_t>> bounds) {
                 return std::make_unique<persia::Deduplicator>(persia::DedupPlan{
                     std::move(tables), std::move(groups), std::move(num_buckets), std::move(bounds)});
             }),
             py::kw_only(), py::arg("tables"), py::arg("groups"), py::arg("num_buckets"), py::arg("bounds"),
             "Checks the plan.")
        .def("run", &run, py::arg("values"), kRun);
    m.def("hash_ids", &hash_ids, py::arg("ids"), py::kw_only(), py::arg("rounds"), py::arg("size"), kHashIds);
}
