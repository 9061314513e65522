// Rows on the wire as NumPy arrays: the format of an array follows from its dtype and its width.
//
// U rows, D dim: float32 [U, D] is fp32, float16 [U, D] fp16, uint16 [U, D] bf16, uint16 [U, D + 2]
// scaled_fp16 (the last two words of a row are its float32 scale).
#pragma once

#include <string>

#include "persia/aligned_array.h"
#include "persia/wire.h"
#include "table_arrays.h"

namespace persia_bindings {

inline constexpr ElementType kUint16{'u', 2, "uint16"};

// The wire format of an array of `num_rows` rows of `dim`; raises ValueError, with what was expected and got,
// if there is none.
inline persia::Wire wire_of(const py::array& array, const std::string& name, py::ssize_t num_rows,
                            py::ssize_t dim, Access access) {
    const bool words = has_dtype(array, 'u', 2);
    const bool scaled = words && array.ndim() == 2 && array.shape(1) == dim + 2;
    check_array(array, name, {kFloat32, kFloat16, kUint16}, {num_rows, scaled ? dim + 2 : dim}, access);
    if (words) return scaled ? persia::Wire::kScaledFp16 : persia::Wire::kBf16;
    return has_dtype(array, 'f', 2) ? persia::Wire::kFp16 : persia::Wire::kFp32;
}

// The same array as rows for the core.
template <typename Byte>
persia::RowsOn<Byte> rows_of(const py::array& array, const std::string& name, py::ssize_t num_rows,
                             py::ssize_t dim, Access access) {
    const persia::Wire wire = wire_of(array, name, num_rows, dim, access);
    return {data_of<Byte>(array), wire, static_cast<std::size_t>(num_rows)};
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
