#include <pybind11/numpy.h>

#include "arrays.h"
#include "bindings.h"
#include "persia/limits.h"

namespace {

using namespace persia_bindings;
using persia::MemoryLimits;

persia::Span<const std::uint64_t> places_of(const MemoryLimits& self, const py::object& places,
                                            py::ssize_t n = any('n')) {
    const auto values = span_of<const std::uint64_t>(check_array(places, "places", {kUint64}, {n}));
    for (const std::uint64_t value : values) {
        if (value >= self.num_rows()) throw py::value_error("places: expected row numbers");
    }
    return values;
}

template <typename Byte>
persia::Span<Byte> bytes_of(const MemoryLimits& self, const py::object& rows, std::size_t n) {
    return span_of<Byte>(check_array(
        rows, "rows", {kUint8}, {static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(self.row_bytes())},
        std::is_const_v<Byte> ? Access::kRead : Access::kWrite));
}

}  // namespace

void bind_limits(py::module_& m) {
    py::class_<MemoryLimits>(m, "MemoryLimits",
                             "Holds rows, states and index entries on huge pages: the least that any table "
                             "must do, for benchmarks.")
        .def(py::init<std::uint64_t, std::size_t, std::size_t>(), py::kw_only(), py::arg("num_rows"),
             py::arg("row_bytes"), py::arg("state_bytes"), "Writes all of the memory once.")
        .def(
            "gather",
            [](const MemoryLimits& self, const py::object& places, const py::object& out) {
                const auto at = places_of(self, places);
                const auto to = bytes_of<std::byte>(self, out, at.size());
                const py::gil_scoped_release nogil;
                self.gather(at, to);
            },
            py::arg("places"), py::arg("out"),
            "Copies the rows at `places` uint64 [n] to `out` uint8 [n, row_bytes].")
        .def(
            "gather_with_entries",
            [](const MemoryLimits& self, const py::object& places, const py::object& entries,
               const py::object& out) {
                const auto at = places_of(self, places);
                const auto entry_at = places_of(self, entries, static_cast<py::ssize_t>(at.size()));
                const auto to = bytes_of<std::byte>(self, out, at.size());
                const py::gil_scoped_release nogil;
                return self.gather_with_entries(at, entry_at, to);
            },
            py::arg("places"), py::arg("entries"), py::arg("out"),
            "Does the same, and reads an index entry at another place for each row.")
        .def(
            "update",
            [](MemoryLimits& self, const py::object& places, const py::object& gradients) {
                const auto at = places_of(self, places);
                const auto from = bytes_of<const std::byte>(self, gradients, at.size());
                const py::gil_scoped_release nogil;
                self.update(at, from);
            },
            py::arg("places"), py::arg("gradients"), "Reads, changes and writes the rows and their states.");
}
