#include <pybind11/numpy.h>

#include "bindings.h"
#include "persia/codec.h"
#include "persia/key.h"
#include "table_arrays.h"
#include "wire_arrays.h"

namespace {

using namespace persia_bindings;

template <std::uint64_t Map(std::uint64_t)>
py::array_t<std::uint64_t> map_all(const py::array& from, const char* name) {
    const py::ssize_t n = check_keys(from, name);
    py::array_t<std::uint64_t> to(n);
    const auto* in = data_of<const std::uint64_t>(from);
    auto* out = to.mutable_data();
    {
        const py::gil_scoped_release nogil;
        for (py::ssize_t i = 0; i < n; ++i) out[i] = Map(in[i]);
    }
    return to;
}

}  // namespace

void bind_codec(py::module_& m) {
    m.def(
        "mix", [](const py::array& ids) { return map_all<persia::mix>(ids, "ids"); }, py::arg("ids"),
        "Keys uint64 [N] of ids uint64 [N]: a bijection.");
    m.def(
        "unmix", [](const py::array& keys) { return map_all<persia::unmix>(keys, "keys"); }, py::arg("keys"),
        "Ids uint64 [N] of keys uint64 [N]: the inverse of mix().");
    m.def(
        "encode_rows",
        [](const py::array& rows, const std::string& wire_name) {
            if (rows.ndim() != 2)
                throw py::value_error("rows: expected float32 [U, D], got " +
                                      array_text(rows, Access::kRead));
            check_array(rows, "rows", {kFloat32}, {rows.shape(0), rows.shape(1)}, Access::kRead);
            const persia::Wire wire = wire_named(wire_name);
            const auto num_rows = static_cast<std::size_t>(rows.shape(0));
            const auto dim = static_cast<std::size_t>(rows.shape(1));
            const py::array out = wire_rows(wire, num_rows, dim);
            const auto* from = data_of<const float>(rows);
            auto* to = data_of<std::byte>(out);
            {
                const py::gil_scoped_release nogil;
                persia::with_wire(wire, [&](auto format) {
                    for (std::size_t u = 0; u < num_rows; ++u)
                        format.encode(from + u * dim, to + u * format.bytes(dim), dim);
                });
            }
            return out;
        },
        py::arg("rows"), py::arg("wire"));
    m.def(
        "decode_rows",
        [](const py::array& rows, std::size_t dim) {
            if (rows.ndim() != 2)
                throw py::value_error("rows: expected two axes, got " + array_text(rows, Access::kRead));
            const auto width = static_cast<py::ssize_t>(dim);
            const persia::Wire wire = wire_of(rows, "rows", rows.shape(0), width, Access::kRead);
            py::array_t<float> out({rows.shape(0), width});
            const auto num_rows = static_cast<std::size_t>(rows.shape(0));
            const auto* from = data_of<const std::byte>(rows);
            auto* to = out.mutable_data();
            {
                const py::gil_scoped_release nogil;
                persia::with_wire(wire, [&](auto format) {
                    for (std::size_t u = 0; u < num_rows; ++u)
                        format.decode(from + u * format.bytes(dim), to + u * dim, dim);
                });
            }
            return out;
        },
        py::arg("rows"), py::arg("dim"));
}
