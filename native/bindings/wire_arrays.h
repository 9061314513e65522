// Rows on the wire as NumPy arrays: the format of an array follows from its dtype and its width.
//
// U rows, D dim: float32 [U, D] is fp32, float16 [U, D] fp16, uint16 [U, D] bf16, uint16 [U, D + 2]
// scaled_fp16 (the last two words of a row are its float32 scale).
#pragma once

#include <string>

#include "table_arrays.h"

namespace persia_bindings {

inline constexpr ElementType kUint16{'u', 2, "uint16"};

// run(W{}) with the wire format W of an array of `num_rows` rows of `dim`; raises ValueError, with what was
// expected and got, if there is none.
template <typename Run>
auto with_wire(const py::array& array, const std::string& name, py::ssize_t num_rows, py::ssize_t dim,
               Access access, const Run& run) {
    const bool words = has_dtype(array, 'u', 2);
    const bool scaled = words && array.ndim() == 2 && array.shape(1) == dim + 2;
    check_array(array, name, {kFloat32, kFloat16, kUint16}, {num_rows, scaled ? dim + 2 : dim}, access);
    if (scaled) return run(persia::WireScaledFp16{});
    if (words) return run(persia::WireBf16{});
    if (has_dtype(array, 'f', 2)) return run(persia::WireFp16{});
    return run(persia::WireFp32{});
}

}  // namespace persia_bindings
