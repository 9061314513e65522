// Four elements of a row that travels, for both compilers: what a thread of a GPU reads and writes at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/codec.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define PERSIA_BOTH __host__ __device__ inline
#else
#define PERSIA_BOTH inline
#endif

namespace persia {

struct Quad {
    float v[4];
};

PERSIA_BOTH std::uint32_t quads_of(std::uint32_t dim) { return (dim + 3) / 4; }

PERSIA_BOTH std::uint32_t float_bits(float x) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    return bits_of(x);
#endif
}

PERSIA_BOTH float bits_float(std::uint32_t x) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(x);
#else
    return float_of(x);
#endif
}

PERSIA_BOTH float from_half(std::uint16_t x) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(x));
#else
    const Half half{x};
    float y;
    decode_half(&half, &y, 1);
    return y;
#endif
}

PERSIA_BOTH std::uint16_t to_half(float x) {
#ifdef __CUDA_ARCH__
    return __half_as_ushort(__float2half_rn(x));
#else
    Half y;
    encode_half(&x, &y, 1);
    return y.bits;
#endif
}

PERSIA_BOTH std::uint16_t to_bf16(float x) {  // as WireBf16
    const std::uint32_t bits = float_bits(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<std::uint16_t>((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

PERSIA_BOTH std::size_t wire_row_bytes(Wire wire, std::uint32_t dim) {
    return wire == Wire::kFp32 ? 4ull * dim : 2ull * dim + (wire == Wire::kScaledFp16 ? 4 : 0);
}

// Four neighbours at once where they lie well: that is what memory bandwidth depends on.
template <typename Word>
struct alignas(4 * sizeof(Word)) Four {
    Word x[4];
};

template <typename Word>
PERSIA_BOTH void load_words(const Word* from, std::uint32_t n, Word* to) {
    if (n == 4 && reinterpret_cast<std::uintptr_t>(from) % sizeof(Four<Word>) == 0) {
        const Four<Word> four = *reinterpret_cast<const Four<Word>*>(from);
        for (int i = 0; i < 4; ++i) to[i] = four.x[i];
    } else {
        for (std::uint32_t i = 0; i < 4; ++i)
            if (i < n) to[i] = from[i];  // of a known length: stays in registers
    }
}

template <typename Word>
PERSIA_BOTH void store_words(const Word* from, std::uint32_t n, Word* to) {
    if (n == 4 && reinterpret_cast<std::uintptr_t>(to) % sizeof(Four<Word>) == 0) {
        Four<Word> four;
        for (int i = 0; i < 4; ++i) four.x[i] = from[i];
        *reinterpret_cast<Four<Word>*>(to) = four;
    } else {
        for (std::uint32_t i = 0; i < 4; ++i)
            if (i < n) to[i] = from[i];  // of a known length: stays in registers
    }
}

PERSIA_BOTH std::uint32_t length_of_quad(std::uint32_t dim, std::uint32_t q) {
    return dim - 4 * q < 4 ? dim - 4 * q : 4;
}

// A row's scale lies behind its words, on any even address.
PERSIA_BOTH float load_scale(const std::uint16_t* words) {
    return bits_float(words[0] | static_cast<std::uint32_t>(words[1]) << 16);
}

// Elements [4 q, 4 q + n) of a row as fp32.
PERSIA_BOTH Quad decode_quad(Wire wire, const std::byte* row, std::uint32_t dim, std::uint32_t q) {
    Quad quad{};
    const std::uint32_t n = length_of_quad(dim, q);
    if (wire == Wire::kFp32) {
        load_words(reinterpret_cast<const float*>(row) + 4 * q, n, quad.v);
        return quad;
    }
    const auto* const words = reinterpret_cast<const std::uint16_t*>(row);
    std::uint16_t w[4] = {};
    load_words(words + 4 * q, n, w);
    const float norm = wire == Wire::kScaledFp16 ? load_scale(words + dim) : 0.0f;
    for (std::uint32_t i = 0; i < 4; ++i) {  // beyond n they are zeros
        if (wire == Wire::kBf16) {
            quad.v[i] = bits_float(static_cast<std::uint32_t>(w[i]) << 16);
        } else {
            quad.v[i] = from_half(w[i]);
            if (wire == Wire::kScaledFp16) quad.v[i] = quad.v[i] * (1 / WireScaledFp16::kKappa) * norm;
        }
    }
    return quad;
}

// The inverse; norm: the row's largest magnitude, of scaled_fp16 only.
PERSIA_BOTH void encode_quad(Wire wire, const Quad& quad, float norm, std::byte* row, std::uint32_t dim,
                             std::uint32_t q) {
    const std::uint32_t n = length_of_quad(dim, q);
    if (wire == Wire::kFp32) {
        store_words(quad.v, n, reinterpret_cast<float*>(row) + 4 * q);
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
