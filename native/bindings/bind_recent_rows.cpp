#include <pybind11/stl.h>

#include <algorithm>

#include "arrays.h"
#include "bindings.h"
#include "persia/recent_rows.h"

namespace {

using namespace persia_bindings;
using persia::RecentRows;

py::tuple find(RecentRows& self, const py::object& keys, const py::object& table_offsets,
               std::uint32_t step) {
    const auto in = span_of<const std::uint64_t>(check_array(keys, "keys", {kUint64}, {any('U')}));
    const auto num_offsets = static_cast<py::ssize_t>(self.num_tables() + 1);
    const auto offsets =
        span_of<const std::uint32_t>(check_array(table_offsets, "table_offsets", {kUint32}, {num_offsets}));
    if (offsets[0] != 0 || !std::is_sorted(offsets.begin(), offsets.end()) ||
        offsets[self.num_tables()] != static_cast<std::uint32_t>(in.size())) {
        throw py::value_error("table_offsets: expected " + std::to_string(num_offsets) +
                              " numbers that grow from 0 to the number of keys");
    }
    py::array_t<std::uint8_t> wanted(static_cast<py::ssize_t>(in.size()));
    py::array_t<std::uint32_t> places(static_cast<py::ssize_t>(in.size()));
    py::array_t<std::int64_t> rings({static_cast<py::ssize_t>(self.num_groups()), py::ssize_t{2}});
    static_assert(sizeof(RecentRows::Ring) == 2 * sizeof(std::int64_t));
    const persia::Span<RecentRows::Ring> rings_out(reinterpret_cast<RecentRows::Ring*>(rings.mutable_data()),
                                                   self.num_groups());
    std::uint32_t ages = 0;
    {
        const py::gil_scoped_release nogil;
        ages = self.find(in, offsets, step, span_of<std::uint8_t>(wanted), span_of<std::uint32_t>(places),
                         rings_out);
    }
    return py::make_tuple(wanted, places, rings, ages);
}

constexpr const char* kRecentRows =
    R"(Tells which rows of a batch its trainer still holds; see native/include/persia/recent_rows.h.

groups: [T] the group of each table, as for `Deduplicator`. reuse_steps: 1 to 31.)";

constexpr const char* kFind =
    R"(Returns (wanted, places, rings, ages) of the batch of `step`; steps must grow.

Shapes: keys uint64 [U] by table, table_offsets uint32 [T+1].
wanted uint8 [U]: 1 for rows that must travel. places uint32 [U]: where each row is in its group's ring of
rows. rings int64 [G, 2]: where in the ring the rows go that travel, one after the other, and its size;
when that changes, the ring begins anew. ages: a mask, in which bit a is set if a row of a steps ago is
used.)";

}  // namespace

void bind_recent_rows(py::module_& m) {
    py::class_<RecentRows>(m, "RecentRows", kRecentRows)
        .def(py::init<std::vector<std::uint32_t>, std::uint32_t>(), py::kw_only(), py::arg("groups"),
             py::arg("reuse_steps"), "Starts with nothing held.")
        .def("find", &find, py::arg("keys"), py::arg("table_offsets"), py::kw_only(), py::arg("step"), kFind);
}
