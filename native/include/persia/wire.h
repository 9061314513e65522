// Rows and gradients in the number format in which they travel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "persia/codec.h"

namespace persia {

inline std::size_t wire_bytes(Wire wire, std::size_t dim) {
    return with_wire(wire, [&](auto format) { return decltype(format)::bytes(dim); });
}

inline void encode_row(Wire wire, const float* row, std::byte* out, std::size_t dim) {
    with_wire(wire, [&](auto format) { decltype(format)::encode(row, out, dim); });
}

// The row as fp32: where it is, if it is that already, else in `room` [dim].
inline const float* decode_row(Wire wire, const std::byte* in, float* room, std::size_t dim) {
    if (wire == Wire::kFp32) return reinterpret_cast<const float*>(in);
    with_wire(wire, [&](auto format) { decltype(format)::decode(in, room, dim); });
    return room;
}

}  // namespace persia
