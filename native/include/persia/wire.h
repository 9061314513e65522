// Rows and gradients in the number format in which they travel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/codec.h"
#include "persia/span.h"
#include "persia/storage.h"

namespace persia {

inline std::size_t wire_bytes(Wire wire, std::size_t dim) {
    return with_wire(wire, [&](auto format) { return decltype(format)::bytes(dim); });
}

// `count` rows that travel, one after the other, each of wire_bytes(wire, dim); Byte is std::byte, const to
// read.
template <typename Byte>
struct RowsOn {
    Byte* data = nullptr;
    Wire wire = Wire::kFp32;
    std::size_t count = 0;

    // Rows [begin, end).
    RowsOn slice(std::size_t begin, std::size_t end, std::size_t dim) const {
        return {data + begin * wire_bytes(wire, dim), wire, end - begin};
    }
};
using Rows = RowsOn<std::byte>;
using ConstRows = RowsOn<const std::byte>;

// Writes n stored rows to out [n, wire_bytes]; zeros for a null pointer. room: [dim].
using EncodeRows = void (*)(const std::byte* const* rows, std::size_t n, std::uint32_t dim, float* room,
                            std::byte* out);
EncodeRows encode_rows(Storage storage, Wire wire, std::uint32_t dim);

// The row as fp32.
void decode_row(Wire wire, const std::byte* in, float* row, std::size_t dim);

}  // namespace persia
