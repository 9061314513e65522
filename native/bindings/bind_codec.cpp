#include <pybind11/numpy.h>

#include "bindings.h"
#include "persia/codec.h"
#include "persia/key.h"
#include "table_arrays.h"

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

void check_same_size(const py::array& from, const py::array& to, ElementType in, ElementType out) {
    check_array(from, "values", {in}, {from.size()}, Access::kRead);
    check_array(to, "out", {out}, {from.size()}, Access::kWrite);
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
        "encode_fp16",
        [](const py::array& values, const py::array& out) {
            check_same_size(values, out, kFloat32, kFloat16);
            const auto* from = data_of<const float>(values);
            auto* to = data_of<persia::Half>(out);
            const auto n = static_cast<std::size_t>(values.size());
            const py::gil_scoped_release nogil;
            persia::encode_half(from, to, n);
        },
        py::arg("values"), py::arg("out"),
        "Writes float32 [N] as float16 [N]: round to nearest even, too large becomes infinity.");
    m.def(
        "decode_fp16",
        [](const py::array& values, const py::array& out) {
            check_same_size(values, out, kFloat16, kFloat32);
            const auto* from = data_of<const persia::Half>(values);
            auto* to = data_of<float>(out);
            const auto n = static_cast<std::size_t>(values.size());
            const py::gil_scoped_release nogil;
            persia::decode_half(from, to, n);
        },
        py::arg("values"), py::arg("out"), "Writes float16 [N] as float32 [N]: exact.");
}
