// Rows on the wire as NumPy arrays: the format of an array follows from its dtype and its width.
//
// U rows, D dim: float32 [U, D] is fp32, float16 [U, D] fp16, uint16 [U, D] bf16, uint16 [U, D + 2]
// scaled_fp16 (the last two words of a row are its float32 scale).
#pragma once

#include <string>
#include <type_traits>

#include "arrays.h"
#include "persia/aligned_array.h"
#include "persia/wire.h"

namespace persia_bindings {

// The rows of an array of `num_rows` (or any('U')) rows of `dim`; raises ValueError, with what was expected
// and got, if it has no wire format.
template <typename Byte>
persia::RowsOn<Byte> rows_of(const py::handle& object, const std::string& name, py::ssize_t num_rows,
                             py::ssize_t dim) {
    bool words = false, scaled = false;
    if (py::isinstance<py::array>(object)) {
        const auto given = py::reinterpret_borrow<py::array>(object);
        words = has_dtype(given, kUint16);
        scaled = words && given.ndim() == 2 && given.shape(1) == dim + 2;
    }
    const auto array =
        check_array(object, name, {kFloat32, kFloat16, kUint16}, {num_rows, scaled ? dim + 2 : dim},
                    std::is_const_v<Byte> ? Access::kRead : Access::kWrite);
    const persia::Wire wire = words ? (scaled ? persia::Wire::kScaledFp16 : persia::Wire::kBf16)
                              : has_dtype(array, kFloat16) ? persia::Wire::kFp16
                                                           : persia::Wire::kFp32;
    return {data_of<Byte>(array), wire, static_cast<std::size_t>(array.shape(0))};
}

inline persia::Wire wire_named(const std::string& name) {
    if (name == "fp32") return persia::Wire::kFp32;
    if (name == "fp16") return persia::Wire::kFp16;
    if (name == "bf16") return persia::Wire::kBf16;
    if (name == "scaled_fp16") return persia::Wire::kScaledFp16;
    throw py::value_error("wire format: expected fp32, fp16, bf16 or scaled_fp16, got " + name);
}

// A fresh, uninitialised array of `num_rows` rows of `dim`.
inline py::array wire_rows(persia::Wire wire, std::size_t num_rows, std::size_t dim) {
    const bool words = wire == persia::Wire::kBf16 || wire == persia::Wire::kScaledFp16;
    const std::size_t width = wire == persia::Wire::kScaledFp16 ? dim + 2 : dim;
    const py::dtype dtype(words ? "uint16" : wire == persia::Wire::kFp16 ? "float16" : "float32");
    const std::size_t bytes = persia::with_wire(wire, [&](auto format) { return format.bytes(dim); });
    auto* const data = persia::AlignedArray<std::byte>(num_rows * bytes).release();
    const py::capsule owner(data, [](void* memory) { std::free(memory); });
    return py::array(dtype, {num_rows, width}, data, owner);
}

}  // namespace persia_bindings
