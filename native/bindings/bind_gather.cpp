#include "arrays.h"
#include "bindings.h"
#include "persia/gather.h"

namespace {

using namespace persia_bindings;

void gather(const py::object& source_object, const py::object& rows_object, const py::object& out_object) {
    const py::array rows = check_array(rows_object, "rows", {kInt64}, {any('N')});
    if (!py::isinstance<py::array>(source_object) || !py::isinstance<py::array>(out_object)) {
        throw py::value_error("gather: expected two arrays, got source " + describe(source_object) +
                              ", out " + describe(out_object));
    }
    const auto source = py::reinterpret_borrow<py::array>(source_object);
    const auto out = py::reinterpret_borrow<py::array>(out_object);
    const auto contiguous = [](const py::array& array) { return (array.flags() & py::array::c_style) != 0; };
    bool fits = contiguous(source) && contiguous(out) && out.writeable() && source.ndim() >= 1 &&
                source.ndim() == out.ndim() && source.dtype().equal(out.dtype()) &&
                out.shape(0) == rows.size();
    for (py::ssize_t axis = 1; fits && axis < source.ndim(); ++axis) {
        fits = source.shape(axis) == out.shape(axis);
    }
    if (!fits) {
        throw py::value_error(
            "gather: expected C-contiguous arrays of one dtype and row shape, and out "
            "writeable with a row for each of rows; got source " +
            describe(source) + ", " + std::to_string(rows.size()) + " rows, out " + describe(out));
    }
    if (out.size() == 0) return;
    const auto row_bytes = static_cast<std::size_t>(out.nbytes() / rows.size());
    const persia::Span<const std::uint8_t> from(static_cast<const std::uint8_t*>(source.data()),
                                                static_cast<std::size_t>(source.nbytes()));
    const persia::Span<std::uint8_t> to(static_cast<std::uint8_t*>(const_cast<void*>(out.data())),
                                        static_cast<std::size_t>(out.nbytes()));
    const auto numbers = span_of<const std::int64_t>(rows);
    bool inside;
    {
        const py::gil_scoped_release nogil;
        inside = persia::gather(from, row_bytes, numbers, to);
    }
    if (!inside) {
        throw py::index_error("gather: got a row outside of source's " + std::to_string(source.shape(0)) +
                              " rows");
    }
}

constexpr const char* kGather = R"(Copies rows in any order: out[i] = source[rows[i]].

Shapes: source [M, ...], rows int64 [N], out [N, ...]; source and out of one dtype and row shape.
Raises: ValueError for arrays that don't fit, IndexError for a row outside of [0, M) (what came before it
is written).)";

}  // namespace

void bind_gather(py::module_& m) {
    m.def("gather", &gather, py::arg("source"), py::arg("rows"), py::arg("out"), kGather);
}
