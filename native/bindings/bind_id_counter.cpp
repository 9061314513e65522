#include <algorithm>

#include "bindings.h"
#include "persia/id_counter.h"
#include "table_arrays.h"

namespace {

using namespace persia_bindings;
using persia::IdCounter;

void add(IdCounter& counter, const py::array& ids, const py::object& counts) {
    const auto n = static_cast<std::size_t>(check_keys(ids, "ids"));
    const std::uint64_t* times = nullptr;
    if (!counts.is_none()) {
        const auto array = py::cast<py::array>(counts);
        check_array(array, "counts", {kUint64}, {ids.shape(0)}, Access::kRead);
        times = data_of<const std::uint64_t>(array);
        if (std::find(times, times + n, 0) != times + n)
            throw py::value_error("counts: expected 1 or more each, got 0");
    }
    const auto* const from = data_of<const std::uint64_t>(ids);
    const py::gil_scoped_release nogil;
    counter.add(from, times, n);
}

py::tuple items(const IdCounter& counter) {
    const auto size = static_cast<py::ssize_t>(counter.size());
    py::array_t<std::uint64_t> ids(size), counts(size);
    auto* const to = ids.mutable_data();
    auto* const times = counts.mutable_data();
    {
        const py::gil_scoped_release nogil;
        counter.items(to, times);
    }
    return py::make_tuple(ids, counts);
}

py::array_t<std::uint64_t> replace_unknown(const IdCounter& counter, const py::array& ids,
                                           std::uint64_t other) {
    const py::ssize_t n = check_keys(ids, "ids");
    py::array_t<std::uint64_t> out(n);
    const auto* const from = data_of<const std::uint64_t>(ids);
    auto* const to = out.mutable_data();
    {
        const py::gil_scoped_release nogil;
        counter.replace_unknown(from, to, static_cast<std::size_t>(n), other);
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
