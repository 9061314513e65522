#include <algorithm>

#include "arrays.h"
#include "bindings.h"
#include "persia/id_counter.h"

namespace {

using namespace persia_bindings;
using persia::IdCounter;

void add(IdCounter& counter, const py::object& object, const py::object& counts) {
    const py::array ids = check_array(object, "ids", {kUint64}, {any('N')});
    persia::Span<const std::uint64_t> times;
    if (!counts.is_none()) {
        times = span_of<const std::uint64_t>(check_array(counts, "counts", {kUint64}, {ids.shape(0)}));
        if (std::find(times.begin(), times.end(), 0) != times.end())
            throw py::value_error("counts: expected 1 or more each, got 0");
    }
    const auto from = span_of<const std::uint64_t>(ids);
    const py::gil_scoped_release nogil;
    counter.add(from, times);
}

py::tuple items(const IdCounter& counter) {
    const auto size = static_cast<py::ssize_t>(counter.size());
    const py::array_t<std::uint64_t> ids(size), counts(size);
    const auto to = span_of<std::uint64_t>(ids), times = span_of<std::uint64_t>(counts);
    {
        const py::gil_scoped_release nogil;
        counter.items(to, times);
    }
    return py::make_tuple(ids, counts);
}

py::array replace_unknown(const IdCounter& counter, const py::object& object, std::uint64_t other) {
    const py::array ids = check_array(object, "ids", {kUint64}, {any('N')});
    const py::array_t<std::uint64_t> out(ids.shape(0));
    const auto from = span_of<const std::uint64_t>(ids);
    const auto to = span_of<std::uint64_t>(out);
    {
        const py::gil_scoped_release nogil;
        counter.replace_unknown(from, to, other);
    }
    return out;
}

}  // namespace

void bind_id_counter(py::module_& m) {
    py::class_<IdCounter>(m, "IdCounter")
        .def(py::init<>())
        .def("__len__", &IdCounter::size)
        .def("add", &add, py::arg("ids"), py::arg("counts") = py::none())
        .def("items", &items)
        .def("replace_unknown", &replace_unknown, py::arg("ids"), py::kw_only(), py::arg("other"));
}
