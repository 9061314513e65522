// Four elements of a row that travels: see quad.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/codec.h"
#include "persia/quad.h"

namespace persia {

PERSIA_BOTH std::size_t wire_row_bytes(Wire wire, std::uint32_t dim) {
    return wire == Wire::kFp32 ? 4ull * dim : 2ull * dim + (wire == Wire::kScaledFp16 ? 4 : 0);
}

PERSIA_BOTH std::uint32_t length_of_quad(std::uint32_t dim, std::uint32_t q) {
    return dim - 4 * q < 4 ? dim - 4 * q : 4;
}

PERSIA_BOTH Access row_access(Wire wire, const std::byte* rows, std::uint32_t dim) {
    if (dim % 4) return Access::kAny;
    if (wire == Wire::kFp32) return on_multiple(rows, 16) ? Access::kFour32 : Access::kAny;
    if (wire == Wire::kScaledFp16) return on_multiple(rows, 4) ? Access::kTwo16 : Access::kAny;
    return on_multiple(rows, 8) ? Access::kFour16 : Access::kAny;
}

// Elements [4 q, 4 q + n) of a row.
template <Access kAccess>
PERSIA_BOTH Raw load_row(Wire wire, const std::byte* row, std::uint32_t dim, std::uint32_t q) {
    const bool narrow = wire != Wire::kFp32;
    Raw raw = load_raw<kAccess>(row + (narrow ? 8 : 16) * static_cast<std::size_t>(q), narrow,
                                length_of_quad(dim, q));
    const std::byte* const scale =
        row + 2 * static_cast<std::size_t>(dim);  // of scaled_fp16, on any even address
    if constexpr (kAccess == Access::kTwo16) {
        raw.norm = read<std::uint32_t>(scale);
    } else if constexpr (kAccess == Access::kAny) {
        if (wire == Wire::kScaledFp16)
            raw.norm = read<std::uint16_t>(scale) | static_cast<std::uint32_t>(read<std::uint16_t>(scale + 2))
                                                        << 16;
    }
    return raw;
}

template <Access kAccess>
PERSIA_BOTH Quad decode_row(Wire wire, const Raw& raw) {
    constexpr bool any = kAccess == Access::kAny;  // else the format is partly known
    if (kAccess == Access::kFour32 || (any && wire == Wire::kFp32)) return decode_fp32(raw);
    if (kAccess != Access::kTwo16 && wire == Wire::kBf16) return decode_bf16(raw);
    Quad quad;
    for (int i = 0; i < 4; ++i) {
        quad.v[i] = from_half(static_cast<std::uint16_t>(raw.w[i / 2] >> 16 * (i % 2)));
        if (kAccess == Access::kTwo16 || (any && wire == Wire::kScaledFp16))
            quad.v[i] = quad.v[i] * (1 / WireScaledFp16::kKappa) * bits_float(raw.norm);
    }
    return quad;
}

// The inverse; norm: the row's largest magnitude, of scaled_fp16 only.
PERSIA_BOTH void encode_quad(Wire wire, const Quad& quad, float norm, std::byte* row, std::uint32_t dim,
                             std::uint32_t q) {
    const std::uint32_t n = length_of_quad(dim, q);
    if (wire == Wire::kFp32) {
        store_floats(quad, n, reinterpret_cast<float*>(row) + 4 * q);
        return;
    }
    auto* const words = reinterpret_cast<std::uint16_t*>(row);
    const float up = norm < 5.421010862427522e-20f ? 18446744073709551616.0f : 1.0f;  // 2^-64, 2^64
    const float factor = norm > 0 ? WireScaledFp16::kKappa / (norm * up) : 0.0f;
    std::uint16_t w[4] = {};
    for (std::uint32_t i = 0; i < 4; ++i) {
        if (wire == Wire::kBf16) {
            w[i] = to_bf16(quad.v[i]);
        } else {
            w[i] = to_half(wire == Wire::kScaledFp16 ? quad.v[i] * up * factor : quad.v[i]);
        }
    }
    store_words(w, n, words + 4 * q);
    if (wire == Wire::kScaledFp16 && q == 0) {
        const std::uint32_t bits = float_bits(norm);
        words[dim] = static_cast<std::uint16_t>(bits);
        words[dim + 1] = static_cast<std::uint16_t>(bits >> 16);
    }
}

// Of the bits without their sign, where NaN > infinity > the finite.
PERSIA_BOTH std::uint32_t largest_bits(const Quad& quad) {
    std::uint32_t most = 0;
    for (int i = 0; i < 4; ++i) {
        const std::uint32_t bits = float_bits(quad.v[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

}  // namespace persia
