// Rows and gradients in the number format in which they travel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "persia/codec.h"

namespace persia {

enum class Wire { kFp32, kFp16 };

constexpr std::size_t wire_bytes(Wire wire, std::size_t dim) { return wire == Wire::kFp32 ? 4 * dim : 2 * dim; }

inline void encode_row(Wire wire, const float* row, std::byte* out, std::size_t dim) {
    if (wire == Wire::kFp32) {
        std::memcpy(out, row, dim * sizeof *row);
    } else {
        encode_half(row, reinterpret_cast<Half*>(out), dim);
    }
}

// The row as fp32: where it is, if it is that already, else in `room` [dim].
inline const float* decode_row(Wire wire, const std::byte* in, float* room, std::size_t dim) {
    if (wire == Wire::kFp32) return reinterpret_cast<const float*>(in);
    decode_half(reinterpret_cast<const Half*>(in), room, dim);
    return room;
}

}  // namespace persia
