#include <pybind11/numpy.h>

#include "arrays.h"
#include "bindings.h"
#include "persia/codec.h"
#include "persia/key.h"
#include "wire_arrays.h"

namespace {

using namespace persia_bindings;

template <std::uint64_t Map(std::uint64_t)>
py::array map_all(const py::object& from, const char* name) {
    const auto in = span_of<const std::uint64_t>(check_array(from, name, {kUint64}, {any('N')}));
    const py::array_t<std::uint64_t> to(static_cast<py::ssize_t>(in.size()));
    const auto out = span_of<std::uint64_t>(to);
    {
        const py::gil_scoped_release nogil;
        for (std::size_t i = 0; i < in.size(); ++i) out[i] = Map(in[i]);
    }
    return to;
}

py::array encode(const py::object& rows, const std::string& wire_name) {
    const py::array array = check_array(rows, "rows", {kFloat32}, {any('U'), any('D')});
    const persia::Wire wire = wire_named(wire_name);
    const auto num_rows = static_cast<std::size_t>(array.shape(0));
    const auto dim = static_cast<std::size_t>(array.shape(1));
    const py::array out = wire_rows(wire, num_rows, dim);
    const auto* from = data_of<const float>(array);
    auto* to = data_of<std::byte>(out);
    {
        const py::gil_scoped_release nogil;
        persia::with_wire(wire, [&](auto format) {
            for (std::size_t u = 0; u < num_rows; ++u)
                format.encode(from + u * dim, to + u * format.bytes(dim), dim);
        });
    }
    return out;
}

py::array decode(const py::object& object, std::size_t dim) {
    const auto width = static_cast<py::ssize_t>(dim);
    const auto rows = rows_of<const std::byte>(object, "rows", any('U'), width);
    const py::array_t<float> out({static_cast<py::ssize_t>(rows.count), width});
    auto* to = data_of<float>(out);
    {
        const py::gil_scoped_release nogil;
        persia::with_wire(rows.wire, [&](auto format) {
            for (std::size_t u = 0; u < rows.count; ++u)
                format.decode(rows.data + u * format.bytes(dim), to + u * dim, dim);
        });
    }
    return out;
}

constexpr const char* kEncodeRows =
    R"(Returns rows [U, D] in a wire format: "fp32", "fp16", "bf16" or "scaled_fp16".

Shapes: float32 [U, D] to float32 [U, D], float16 [U, D], uint16 [U, D], or uint16 [U, D + 2].)";

}  // namespace

void bind_codec(py::module_& m) {
    m.def(
        "mix", [](const py::object& ids) { return map_all<persia::mix>(ids, "ids"); }, py::arg("ids"),
        "Returns the keys uint64 [N] of ids uint64 [N]: a bijection.");
    m.def(
        "unmix", [](const py::object& keys) { return map_all<persia::unmix>(keys, "keys"); }, py::arg("keys"),
        "Returns the ids uint64 [N] of keys uint64 [N]: the inverse of `mix`.");
    m.def("encode_rows", &encode, py::arg("rows"), py::arg("wire"), kEncodeRows);
    m.def("decode_rows", &decode, py::arg("rows"), py::arg("dim"),
          "Returns float32 [U, D] of rows in any wire format, which follows from their dtype and width.");
}
