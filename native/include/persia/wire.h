// Rows and gradients in the number format in which they travel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/codec.h"
#include "persia/storage.h"

namespace persia {

inline std::size_t wire_bytes(Wire wire, std::size_t dim) {
    return with_wire(wire, [&](auto format) { return decltype(format)::bytes(dim); });
}

// Writes n stored rows to out [n, wire_bytes]; zeros for a null pointer. room: [dim].
using EncodeRows = void (*)(const std::byte* const* rows, std::size_t n, std::uint32_t dim, float* room,
                            std::byte* out);
EncodeRows encode_rows(Storage storage, Wire wire, std::uint32_t dim);

// The row as fp32.
void decode_row(Wire wire, const std::byte* in, float* row, std::size_t dim);

}  // namespace persia
