// Tables as a service reads them.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "persia/served_table.h"

namespace {

using namespace persia_bindings;
using persia::Key;
using persia::RowFormat;
using persia::ServedTable;

// For fewer keys, waiting for the GIL afterwards would take longer than the call.
constexpr std::size_t kKeysWithoutGil = 4096;

template <class Work>
void run(std::size_t num_keys, Work&& work) {
    if (num_keys < kKeysWithoutGil) return work();
    const py::gil_scoped_release nogil;
    work();
}

// Keeps the arrays that the table points into.
struct Served {
    Served(const std::string& rows, std::uint32_t dim) : table(persia::row_format_of(rows), dim) {}
    ServedTable table;
    std::vector<py::object> arrays;

    py::ssize_t row_bytes() const { return static_cast<py::ssize_t>(table.row_bytes()); }
};

persia::Span<const Key> keys_of(const py::object& keys, const char* name) {
    return span_of<const Key>(check_array(keys, name, {kUint64}, {any('n')}));
}

const std::byte* rows_of(const Served& self, const py::object& rows, std::size_t n) {
    return data_of<const std::byte>(
        check_array(rows, "rows", {kUint8}, {static_cast<py::ssize_t>(n), self.row_bytes()}));
}

void add_part(Served& self, const py::object& keys, const py::object& cells, std::uint32_t shift,
              const py::object& rows) {
    const auto of = keys_of(keys, "keys");
    const auto places = span_of<const std::uint32_t>(check_array(cells, "cells", {kUint32}, {any('m')}));
    const persia::ServedPart part{of, places, shift, rows_of(self, rows, of.size())};
    {
        const py::gil_scoped_release nogil;
        self.table.add_part(part);
    }
    self.arrays.insert(self.arrays.end(), {keys, cells, rows});
}

void add_changes(Served& self, const py::object& keys, const py::object& rows, const py::object& removed) {
    const auto of = keys_of(keys, "keys"), gone = keys_of(removed, "removed");
    const std::byte* const data = rows_of(self, rows, of.size());
    {
        const py::gil_scoped_release nogil;
        self.table.add_changes(of, data, gone);
    }
    self.arrays.push_back(rows);
}

void lookup(const Served& self, const py::object& keys, const py::object& out) {
    const auto of = keys_of(keys, "keys");
    const auto n = static_cast<py::ssize_t>(of.size());
    auto* const to =
        data_of<float>(check_array(out, "out", {kFloat32}, {n, self.table.dim()}, Access::kWrite));
    run(of.size(), [&] { self.table.lookup(of, to); });
}

void copy(const Served& self, const py::object& keys, const py::object& out) {
    const auto of = keys_of(keys, "keys");
    const auto n = static_cast<py::ssize_t>(of.size());
    auto* const to =
        data_of<std::byte>(check_array(out, "out", {kUint8}, {n, self.row_bytes()}, Access::kWrite));
    run(of.size(), [&] { self.table.copy(of, to); });
}

template <class T>
py::array_t<T> owned(std::vector<T> values) {
    auto* const kept = new std::vector<T>(std::move(values));
    const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>({static_cast<py::ssize_t>(kept->size())}, kept->data(), owner);
}

py::array_t<Key> all_keys(const Served& self) {
    std::vector<Key> keys;
    {
        const py::gil_scoped_release nogil;
        keys = self.table.keys();
    }
    return owned(std::move(keys));
}

py::tuple make_cells(const py::object& keys) {
    const auto of = keys_of(keys, "keys");
    if (!std::is_sorted(of.begin(), of.end())) throw py::value_error("keys: expected ascending keys");
    std::uint32_t shift = 0;
    std::vector<std::uint32_t> cells;
    {
        const py::gil_scoped_release nogil;
        shift = persia::cell_shift(of);
        cells = persia::cells_of(of, shift);
    }
    return py::make_tuple(owned(std::move(cells)), shift);
}

py::array_t<std::uint8_t> encode_served(const py::object& rows, const std::string& name) {
    const RowFormat format = persia::row_format_of(name);
    const auto from = check_array(rows, "rows", {kFloat32}, {any('n'), any('D')});
    const auto n = from.shape(0), dim = from.shape(1);
    const auto row_bytes = persia::bytes_of(format, static_cast<std::size_t>(dim));
    py::array_t<std::uint8_t> out({n, static_cast<py::ssize_t>(row_bytes)});
    const auto* const values = data_of<const float>(from);
    auto* const to = reinterpret_cast<std::byte*>(out.mutable_data());
    const py::gil_scoped_release nogil;
    for (py::ssize_t i = 0; i < n; ++i) {
        persia::encode_row(format, values + i * dim, to + static_cast<std::size_t>(i) * row_bytes,
                           static_cast<std::size_t>(dim));
    }
    return out;
}

// Rows of several tables, as a worker asks a server for them.
void lookup_served(const std::vector<const Served*>& tables, const py::object& keys, const py::object& counts,
                   const std::vector<std::size_t>& groups, const std::vector<py::object>& out) {
    const auto of = keys_of(keys, "keys");
    const auto num_tables = static_cast<py::ssize_t>(tables.size());
    const auto each = span_of<const std::uint32_t>(check_array(counts, "counts", {kUint32}, {num_tables}));
    if (groups.size() != tables.size()) throw py::value_error("groups: expected one for each table");
    std::vector<std::size_t> rows(out.size());
    std::vector<py::ssize_t> dims(out.size(), -1);
    std::size_t total = 0;
    for (std::size_t t = 0; t < tables.size(); ++t) {
        if (tables[t] == nullptr) throw py::value_error("tables: got None");
        if (groups[t] >= out.size()) throw py::value_error("groups: there is no such array in out");
        const auto dim = static_cast<py::ssize_t>(tables[t]->table.dim());
        if (dims[groups[t]] >= 0 && dims[groups[t]] != dim) throw py::value_error("groups: dims differ");
        dims[groups[t]] = dim;
        rows[groups[t]] += each[t];
        total += each[t];
    }
    if (total != of.size()) {
        throw py::value_error("counts: they add up to " + std::to_string(total) + ", expected " +
                              std::to_string(of.size()) + ", the number of keys");
    }
    std::vector<float*> to(out.size());
    for (std::size_t g = 0; g < out.size(); ++g) {
        const auto n = static_cast<py::ssize_t>(rows[g]);
        const std::string name = "out[" + std::to_string(g) + "]";
        to[g] = data_of<float>(
            check_array(out[g], name, {kFloat32}, {n, std::max<py::ssize_t>(dims[g], 0)}, Access::kWrite));
    }
    run(of.size(), [&] {
        std::size_t begin = 0;
        for (std::size_t t = 0; t < tables.size(); ++t) {
            tables[t]->table.lookup(of.slice(begin, begin + each[t]), to[groups[t]]);
            begin += each[t];
            to[groups[t]] += std::size_t{each[t]} * tables[t]->table.dim();
        }
    });
}

constexpr const char* kServed =
    R"(Holds a table as a service reads it: sorted parts, and changes on top of them.

rows: "fp32", "fp16", "bf16" or "int8", with a scale for each row. The arrays that it is given are kept and
must not change. Threads may look up at a time, while none adds.)";

}  // namespace

void bind_served(py::module_& m) {
    py::class_<Served>(m, "ServedTable", kServed)
        .def(py::init<const std::string&, std::uint32_t>(), py::arg("rows"), py::arg("dim"),
             "Makes an empty table.")
        .def("add_part", &add_part, py::arg("keys"), py::arg("cells"), py::arg("shift"), py::arg("rows"),
             "Adds rows uint8 [n, bytes] of ascending keys, with the cells that `make_cells` gave.\n\n"
             "Raises: ValueError for cells that don't fit, and keys among those of another part.")
        .def("add_changes", &add_changes, py::arg("keys"), py::arg("rows"), py::arg("removed"),
             "Takes away the rows of `removed`, then adds or replaces those of `keys`.")
        .def("lookup", &lookup, py::arg("keys"), py::arg("out"),
             "Writes the rows of `keys` [U], in any order, to `out` float32 [U, D]; zeros where there is "
             "none.")
        .def("copy", &copy, py::arg("keys"), py::arg("out"),
             "Writes the rows of `keys` as they are kept to `out` uint8 [U, bytes].\n\n"
             "Raises: ValueError for a key without a row.")
        .def("keys", &all_keys, "Returns the keys of all rows, ascending.")
        .def_property_readonly("row_bytes", &Served::row_bytes, "Bytes of a row as it is kept.")
        .def_property_readonly(
            "held_bytes", [](const Served& self) { return self.table.held_bytes(); },
            "Bytes of memory of its own, without the arrays that it was given.");
    m.def("make_cells", &make_cells, py::arg("keys"),
          "Returns (cells uint32 [m + 1], shift), by which a key is found among the ascending `keys`.");
    m.def("encode_served", &encode_served, py::arg("rows"), py::arg("format"),
          "Returns rows [n, D] as a `ServedTable` keeps them, uint8 [n, bytes].");
    m.def("lookup_served", &lookup_served, py::arg("tables"), py::arg("keys"), py::arg("counts"),
          py::arg("groups"), py::arg("out"),
          "Looks up `counts` [T] keys of each table, one table after the other in `keys` [U].\n\n"
          "groups: of each table the array of `out` that its rows go to, float32 [U_g, D_g].");
}
