#include "persia/wire.h"

#include <cstring>
#include <type_traits>

#include "persia/fixed_dim.h"
#include "persia/lanes.h"

namespace persia {
namespace {

template <class Stored, class Sent, std::uint32_t kDim>
void encode(const std::byte* const* rows, std::size_t n, std::uint32_t any_dim, float* room, std::byte* out) {
    const std::uint32_t dim = dim_or<kDim>(any_dim);
    const std::size_t row_bytes = Sent::bytes(dim);
    for (std::size_t i = 0; i < n; ++i, out += row_bytes) {
        if (rows[i] == nullptr) {
            std::memset(out, 0, row_bytes);
        } else if (std::is_same<Stored, Sent>::value && std::is_same<Sent, WireFp32>::value) {
            copy(reinterpret_cast<float*>(out), reinterpret_cast<const float*>(rows[i]), dim);
        } else if (std::is_same<Stored, Sent>::value) {
            std::memcpy(out, rows[i], row_bytes);
        } else if (std::is_same<Stored, WireFp32>::value) {
            Sent::encode(reinterpret_cast<const float*>(rows[i]), out, dim);
        } else {
            Stored::decode(rows[i], room, dim);
            Sent::encode(room, out, dim);
        }
    }
}

Wire format_of(Storage storage) {
    if (storage == Storage::kFp32) return Wire::kFp32;
    return storage == Storage::kFp16 ? Wire::kFp16 : Wire::kBf16;
}

}  // namespace

EncodeRows encode_rows(Storage storage, Wire wire, std::uint32_t dim) {
    return with_wire(format_of(storage), [&](auto stored) {
        return with_wire(wire, [&](auto sent) {
            return with_dim(dim, [](auto fixed) -> EncodeRows {
                return &encode<decltype(stored), decltype(sent), decltype(fixed)::value>;
            });
        });
    });
}

void decode_row(Wire wire, const std::byte* in, float* row, std::size_t dim) {
    with_wire(wire, [&](auto format) { decltype(format)::decode(in, row, dim); });
}

}  // namespace persia
