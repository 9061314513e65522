#include <pybind11/numpy.h>

#include "bindings.h"
#include "persia/limits.h"
#include "table_arrays.h"

namespace {

using namespace persia_bindings;
using persia::MemoryLimits;

persia::Span<const std::uint64_t> places_of(const MemoryLimits& self, const py::array& places,
                                            py::ssize_t n) {
    check_array(places, "places", {kUint64}, {n}, Access::kRead);
    const auto values = span_of<const std::uint64_t>(places);
    for (const std::uint64_t value : values) {
        if (value >= self.num_rows()) throw py::value_error("places: expected row numbers");
    }
    return values;
}

template <typename Byte>
persia::Span<Byte> bytes_of(const MemoryLimits& self, const py::array& rows, py::ssize_t n, Access access) {
    check_array(rows, "rows", {kUint8}, {n, static_cast<py::ssize_t>(self.row_bytes())}, access);
    return span_of<Byte>(rows);
}

}  // namespace

void bind_limits(py::module_& m) {
    py::class_<MemoryLimits>(m, "MemoryLimits", "What memory allows; see _native.pyi.")
        .def(py::init<std::uint64_t, std::size_t, std::size_t>(), py::kw_only(), py::arg("num_rows"),
             py::arg("row_bytes"), py::arg("state_bytes"))
        .def(
            "gather",
            [](const MemoryLimits& self, const py::array& places, const py::array& out) {
                const py::ssize_t n = places.size();
                const auto at = places_of(self, places, n);
                const auto to = bytes_of<std::byte>(self, out, n, Access::kWrite);
                const py::gil_scoped_release nogil;
                self.gather(at, to);
            },
            py::arg("places"), py::arg("out"))
        .def(
            "gather_with_entries",
            [](const MemoryLimits& self, const py::array& places, const py::array& entries,
               const py::array& out) {
                const py::ssize_t n = places.size();
                const auto at = places_of(self, places, n);
                const auto entry_at = places_of(self, entries, n);
                const auto to = bytes_of<std::byte>(self, out, n, Access::kWrite);
                const py::gil_scoped_release nogil;
                return self.gather_with_entries(at, entry_at, to);
            },
            py::arg("places"), py::arg("entries"), py::arg("out"))
        .def(
            "update",
            [](MemoryLimits& self, const py::array& places, const py::array& gradients) {
                const py::ssize_t n = places.size();
                const auto at = places_of(self, places, n);
                const auto from = bytes_of<const std::byte>(self, gradients, n, Access::kRead);
                const py::gil_scoped_release nogil;
                self.update(at, from);
            },
            py::arg("places"), py::arg("gradients"));
}
