#include <algorithm>

#include "bindings.h"
#include "persia/id_counter.h"
#include "table_arrays.h"

namespace {

using namespace persia_bindings;
using persia::IdCounter;

void add(IdCounter& counter, const py::array& ids, const py::object& counts) {
    check_keys(ids, "ids");
    persia::Span<const std::uint64_t> times;
    if (!counts.is_none()) {
        const auto array = py::cast<py::array>(counts);
        check_array(array, "counts", {kUint64}, {ids.shape(0)}, Access::kRead);
        times = span_of<const std::uint64_t>(array);
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

py::array_t<std::uint64_t> replace_unknown(const IdCounter& counter, const py::array& ids,
                                           std::uint64_t other) {
    const py::array_t<std::uint64_t> out(check_keys(ids, "ids"));
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
