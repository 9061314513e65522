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
    py::class_<IdCounter>(m, "IdCounter",
                          "Counts how often each of many different ids was met. One thread at a time uses "
                          "it; the GIL is released.")
        .def(py::init<>(), "Starts with no ids.")
        .def("__len__", &IdCounter::size, "Counts the different ids.")
        .def("add", &add, py::arg("ids"), py::arg("counts") = py::none(),
             "Counts each of `ids` uint64 [N] once more, or `counts` uint64 [N] times.\n\nRaises: ValueError "
             "for a count of 0.")
        .def("items", &items,
             "Returns all ids and their counts, uint64 [n] each, in no order that means anything.")
        .def("replace_unknown", &replace_unknown, py::arg("ids"), py::kw_only(), py::arg("other"),
             "Returns the ids uint64 [N], with `other` for those that were never met.");
}
