#include <pybind11/numpy.h>

#include "bindings.h"
#include "persia/limits.h"
#include "table_arrays.h"

namespace {

using namespace persia_bindings;
using persia::MemoryLimits;

inline constexpr ElementType kUint8{'u', 1, "uint8"};

const std::uint64_t* check_places(const MemoryLimits& self, const py::array& places, py::ssize_t n) {
    check_array(places, "places", {kUint64}, {n}, Access::kRead);
    const auto* values = data_of<const std::uint64_t>(places);
    for (py::ssize_t i = 0; i < n; ++i) {
        if (values[i] >= self.num_rows()) throw py::value_error("places: expected row numbers");
    }
    return values;
}

std::byte* check_bytes(const MemoryLimits& self, const py::array& rows, py::ssize_t n, Access access) {
    check_array(rows, "rows", {kUint8}, {n, static_cast<py::ssize_t>(self.row_bytes())}, access);
    return data_of<std::byte>(rows);
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
                const auto* at = check_places(self, places, n);
                auto* to = check_bytes(self, out, n, Access::kWrite);
                const py::gil_scoped_release nogil;
                self.gather(at, static_cast<std::size_t>(n), to);
            },
            py::arg("places"), py::arg("out"))
        .def(
            "gather_with_entries",
            [](const MemoryLimits& self, const py::array& places, const py::array& entries,
               const py::array& out) {
                const py::ssize_t n = places.size();
                const auto* at = check_places(self, places, n);
                const auto* entry_at = check_places(self, entries, n);
                auto* to = check_bytes(self, out, n, Access::kWrite);
                const py::gil_scoped_release nogil;
                return self.gather_with_entries(at, entry_at, static_cast<std::size_t>(n), to);
            },
            py::arg("places"), py::arg("entries"), py::arg("out"))
        .def(
            "update",
            [](MemoryLimits& self, const py::array& places, const py::array& gradients) {
                const py::ssize_t n = places.size();
                const auto* at = check_places(self, places, n);
                const auto* from = check_bytes(self, gradients, n, Access::kRead);
                const py::gil_scoped_release nogil;
                self.update(at, static_cast<std::size_t>(n), from);
            },
            py::arg("places"), py::arg("gradients"));
}
