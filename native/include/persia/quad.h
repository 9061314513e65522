// Four neighbouring elements, for both compilers: what a thread of a GPU reads and writes at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "persia/codec.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define PERSIA_BOTH __host__ __device__ inline
#else
#define PERSIA_BOTH inline
#endif

namespace persia {

struct alignas(16) Quad {
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

// How a thread loads four neighbours: that is what memory bandwidth depends on. All but kAny are for dims
// that are multiples of 4.
enum class Access : std::uint8_t {
    kFour32,  // at once, from a multiple of 16 bytes
    kFour16,  // at once, from a multiple of 8
    kTwo16,   // two and two, from a multiple of 4: such are the rows of scaled_fp16
    kAny,     // one by one
};

PERSIA_BOTH bool on_multiple(const void* address, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

// Of memory that nobody writes meanwhile: a GPU may load it ahead of stores that come first.
template <typename Word>
PERSIA_BOTH Word read(const void* from) {
#ifdef __CUDA_ARCH__
    return __ldg(static_cast<const Word*>(from));
#else
    Word word;
    std::memcpy(&word, from, sizeof word);
    return word;
#endif
}

// Four elements as they lie in memory: each its 32 bits, or 16 of them, two in a word. Kept so until all
// loads that go together are on their way.
struct Raw {
    std::uint32_t w[4];
    std::uint32_t norm;  // of a row of scaled_fp16
};

// narrow: elements have 16 bits. n: how many of the four there are; the others become zeros.
template <Access kAccess>
PERSIA_BOTH Raw load_raw(const std::byte* from, bool narrow, std::uint32_t n) {
    Raw raw{};
    if constexpr (kAccess == Access::kFour32) {
#ifdef __CUDA_ARCH__
        const uint4 four = read<uint4>(from);
        raw.w[0] = four.x, raw.w[1] = four.y, raw.w[2] = four.z, raw.w[3] = four.w;
#else
        std::memcpy(raw.w, from, 16);
#endif
    } else if constexpr (kAccess == Access::kFour16) {
#ifdef __CUDA_ARCH__
        const uint2 two = read<uint2>(from);
        raw.w[0] = two.x, raw.w[1] = two.y;
#else
        std::memcpy(raw.w, from, 8);
#endif
    } else if constexpr (kAccess == Access::kTwo16) {
        raw.w[0] = read<std::uint32_t>(from);
        raw.w[1] = read<std::uint32_t>(from + 4);
    } else {
        for (std::uint32_t i = 0; i < 4; ++i) {  // of a known length: stays in registers
            if (i >= n) continue;
            if (narrow) {
                raw.w[i / 2] |= static_cast<std::uint32_t>(read<std::uint16_t>(from + 2 * i)) << 16 * (i % 2);
            } else {
                raw.w[i] = read<std::uint32_t>(from + 4 * i);
            }
        }
    }
    return raw;
}

PERSIA_BOTH Quad decode_fp32(const Raw& raw) {
    Quad quad;
    for (int i = 0; i < 4; ++i) quad.v[i] = bits_float(raw.w[i]);
    return quad;
}

PERSIA_BOTH Quad decode_bf16(const Raw& raw) {
    Quad quad;
    for (int i = 0; i < 4; ++i) quad.v[i] = bits_float(raw.w[i / 2] >> 16 * (i % 2) << 16);
    return quad;
}

PERSIA_BOTH void store_floats(const Quad& quad, std::uint32_t n, float* to) {
    if (n == 4 && on_multiple(to, 16)) {
#ifdef __CUDA_ARCH__  // read by nobody soon: what is read often stays in the cache instead
        __stcs(reinterpret_cast<float4*>(to), make_float4(quad.v[0], quad.v[1], quad.v[2], quad.v[3]));
#else
        std::memcpy(to, quad.v, 16);
#endif
    } else {
        for (std::uint32_t i = 0; i < 4; ++i)
            if (i < n) to[i] = quad.v[i];
    }
}

PERSIA_BOTH void store_words(const std::uint16_t* words, std::uint32_t n, std::uint16_t* to) {
    if (n == 4 && on_multiple(to, 4)) {
        const std::uint32_t low = words[0] | static_cast<std::uint32_t>(words[1]) << 16;
        const std::uint32_t high = words[2] | static_cast<std::uint32_t>(words[3]) << 16;
#ifdef __CUDA_ARCH__
        if (on_multiple(to, 8)) {
            __stcs(reinterpret_cast<uint2*>(to), make_uint2(low, high));
        } else {
            __stcs(reinterpret_cast<unsigned*>(to), low);
            __stcs(reinterpret_cast<unsigned*>(to) + 1, high);
        }
#else
        std::memcpy(to, &low, 4);
        std::memcpy(to + 2, &high, 4);
#endif
    } else {
        for (std::uint32_t i = 0; i < 4; ++i)
            if (i < n) to[i] = words[i];
    }
}

PERSIA_BOTH void store_bf16(const Quad& quad, std::uint32_t n, std::uint16_t* to) {
    std::uint16_t words[4];
    for (int i = 0; i < 4; ++i) {
#ifdef __CUDA_ARCH__  // one instruction for two; bits of NaNs differ
        words[i] = __bfloat16_as_ushort(__float2bfloat16_rn(quad.v[i]));
#else
        words[i] = to_bf16(quad.v[i]);
#endif
    }
    store_words(words, n, to);
}

}  // namespace persia
