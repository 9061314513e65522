// A server's tables for calls that concern a whole record.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "locked_table.h"
#include "wire_arrays.h"

namespace {

using namespace persia_bindings;
using persia::Key;
using persia::RecordKeys;
using persia::TableSet;

using Groups = std::vector<py::object>;  // [G] arrays of rows

RecordKeys to_keys(const TableSet& self, const py::object& keys, const py::object& counts,
                   const std::string& prefix = "") {
    const auto tables = static_cast<py::ssize_t>(self.num_tables());
    return {span_of<const Key>(check_array(keys, prefix + "keys", {kUint64}, {any('U')})),
            span_of<const std::uint32_t>(check_array(counts, prefix + "counts", {kUint32}, {tables}))};
}

template <class Byte>
std::vector<persia::RowsOn<Byte>> to_rows(const TableSet& self, const Groups& arrays,
                                          const std::string& name) {
    const auto& dims = self.dims();
    if (arrays.size() != dims.size()) {
        throw py::value_error(name + ": got " + std::to_string(arrays.size()) + " arrays, expected " +
                              std::to_string(dims.size()) + ", one for each dim group");
    }
    std::vector<persia::RowsOn<Byte>> rows;
    for (std::size_t g = 0; g < dims.size(); ++g) {
        rows.push_back(rows_of<Byte>(arrays[g], name + "[" + std::to_string(g) + "]", any('U'),
                                     static_cast<py::ssize_t>(dims[g])));
    }
    return rows;
}

persia::Span<const std::uint8_t> to_wanted(const py::object& wanted, py::ssize_t n) {
    if (wanted.is_none()) return {};
    return span_of<const std::uint8_t>(check_array(wanted, "wanted", {kUint8}, {n}));
}

std::vector<std::uint64_t> row_counts(const TableSet& self, const py::object& counts,
                                      const py::object& wanted) {
    const auto tables = static_cast<py::ssize_t>(self.num_tables());
    const auto each = span_of<const std::uint32_t>(check_array(counts, "counts", {kUint32}, {tables}));
    return self.row_counts(each,
                           to_wanted(wanted, std::accumulate(each.begin(), each.end(), py::ssize_t{0})));
}

py::array_t<std::uint32_t> pull(TableSet& self, const py::object& keys, const py::object& counts,
                                std::int64_t step, const Groups& out, const py::object& slots,
                                const py::object& wanted) {
    const RecordKeys of = to_keys(self, keys, counts);
    const auto n = static_cast<py::ssize_t>(of.keys.size());
    const auto rows = to_rows<std::byte>(self, out, "out");
    const auto to = span_of<std::uint32_t>(check_array(slots, "slots", {kUint32}, {n}, Access::kWrite));
    const auto chosen = to_wanted(wanted, n);
    const std::uint32_t at = check_step(step);
    py::array_t<std::uint32_t> epochs(static_cast<py::ssize_t>(self.num_tables()));
    const persia::Span<std::uint32_t> into(epochs.mutable_data(), self.num_tables());
    {
        const py::gil_scoped_release nogil;
        self.pull(of, at, rows, to, chosen, into);
    }
    return epochs;
}

void lookup(const TableSet& self, const py::object& keys, const py::object& counts, const Groups& out) {
    const RecordKeys of = to_keys(self, keys, counts);
    const auto rows = to_rows<std::byte>(self, out, "out");
    const py::gil_scoped_release nogil;
    self.lookup(of, rows);
}

// keys, counts, slots, gradients, epochs
using PyRecord = std::tuple<py::object, py::object, py::object, Groups, py::object>;

Counts push(TableSet& self, const std::vector<PyRecord>& records, std::int64_t step) {
    std::vector<persia::PushRecord> checked;
    for (const auto& [keys, counts, slots, gradients, epochs] : records) {
        const std::string prefix = "records[" + std::to_string(checked.size()) + "]: ";
        const RecordKeys of = to_keys(self, keys, counts, prefix);
        const auto n = static_cast<py::ssize_t>(of.keys.size());
        const auto tables = static_cast<py::ssize_t>(self.num_tables());
        checked.push_back(
            {of, span_of<const std::uint32_t>(check_array(slots, prefix + "slots", {kUint32}, {n})),
             to_rows<const std::byte>(self, gradients, prefix + "gradients"),
             span_of<const std::uint32_t>(check_array(epochs, prefix + "epochs", {kUint32}, {tables}))});
    }
    const std::uint32_t at = check_step(step);
    const py::gil_scoped_release nogil;
    return to_tuple(self.push(checked, at));
}

std::uint64_t evict(TableSet& self, std::int64_t step) {
    const std::uint32_t at = check_step(step);
    const py::gil_scoped_release nogil;
    return self.evict(at);
}

void set_lr(TableSet& self, const py::object& rates) {
    const auto tables = static_cast<py::ssize_t>(self.num_tables());
    const auto each = span_of<const double>(check_array(rates, "rates", {kFloat64}, {tables}));
    const py::gil_scoped_release nogil;
    self.set_lr(each);
}

constexpr const char* kTableSet =
    R"(Holds a server's tables for calls that concern a whole record: one call, with the GIL released.

Shapes: U keys of a record, T tables, G dim groups, U_g rows of a dim group, D_g its dim. A record has
`keys` uint64 [U], those of each table one after the other, `counts` uint32 [T] of them, and for each dim
group the rows of its tables [U_g, D_g] on the wire, see `encode_rows`. What `Table` says of a call holds for
each table's part. Threads may share the tables: each is locked while it is worked on, and no longer.
Raises: ValueError, before anything changes, for what `Table` refuses and for counts that don't fit.)";

constexpr const char* kInit = R"(Takes tables, None where the server has no buckets of one.

groups [T]: the dim group of each table. dims [G]: their dims.)";

constexpr const char* kRowCounts = R"(Returns U_g for each dim group.

wanted: uint8 [U]; only keys that have a 1 count.)";

constexpr const char* kPull = R"(Writes the rows of `keys` to `out`; returns the epochs, uint32 [T].

See `Table.pull`. Tables without keys have epoch 0.)";

constexpr const char* kPush = R"(Makes one optimizer update per row with all records of a step.

records: (keys, counts, slots, gradients, epochs) as they were pulled, see `Table.push_step`. Returns how
many rows were (applied, evicted in flight, unadmitted, non-finite), which add up to all U.)";

}  // namespace

void bind_table_set(py::module_& m) {
    py::class_<TableSet>(m, "TableSet", kTableSet)
        .def(py::init([](const std::vector<std::shared_ptr<LockedTable>>& tables,
                         const std::vector<std::uint32_t>& groups, const std::vector<std::uint32_t>& dims) {
                 return std::make_unique<TableSet>(
                     std::vector<std::shared_ptr<persia::SharedTable>>(tables.begin(), tables.end()), groups,
                     dims);
             }),
             py::arg("tables"), py::arg("groups"), py::arg("dims"), kInit)
        .def("row_counts", &row_counts, py::arg("counts"), py::arg("wanted") = py::none(), kRowCounts)
        .def("pull", &pull, py::arg("keys"), py::arg("counts"), py::arg("step"), py::arg("out"),
             py::arg("slots"), py::arg("wanted") = py::none(), kPull)
        .def("lookup", &lookup, py::arg("keys"), py::arg("counts"), py::arg("out"),
             "Writes the rows of `keys` to `out`, zeros for unseen; changes nothing (evaluation).")
        .def("push", &push, py::arg("records"), py::arg("step"), kPush)
        .def("evict", &evict, py::arg("step"), "Evicts from all tables after `step`; returns how many rows.")
        .def("set_lr", &set_lr, py::arg("rates"),
             "Sets the learning rates, float64 [T], of the updates to come.");
}
