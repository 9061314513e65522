// Number formats in which rows and gradients travel.
//
// Inline because a table decodes or encodes one short row at a time. D is a row's dim.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace persia {

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct Half {
    std::uint16_t bits;
};
static_assert(sizeof(Half) == 2);

// As IEEE 754 and NumPy do it: round to nearest, ties to even; too large becomes infinity. In software, for
// CPUs without conversion instructions; also the reference for the tests.
Half encode_half_portable(float value);
float decode_half_portable(Half value);

// n elements; the arrays need no alignment beyond their type's and must not overlap.
inline void encode_half(const float* from, Half* to, std::size_t n) {
    std::size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
    }
    for (; i < n; ++i) to[i].bits = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
#else
    for (; i < n; ++i) to[i] = encode_half_portable(from[i]);
#endif
}

inline void decode_half(const Half* from, float* to, std::size_t n) {
    std::size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
    }
    for (; i < n; ++i) to[i] = _cvtsh_ss(from[i].bits);
#else
    for (; i < n; ++i) to[i] = decode_half_portable(from[i]);
#endif
}

// True if no element is infinite or NaN.
inline bool all_finite(const float* values, std::size_t n) {
    // No early exit: a branch per element would keep this from being vectorised.
    std::uint32_t bad = 0;
    std::size_t whole = 0;
#ifdef __AVX2__
    whole = n / 8 * 8;
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    __m256i any = _mm256_setzero_si256();
    for (std::size_t i = 0; i < whole; i += 8) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
        any = _mm256_or_si256(any, _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent));
    }
    bad = _mm256_testz_si256(any, any) == 0;
#endif
    for (std::size_t i = whole; i < n; ++i) {
        bad |= (bits_of(values[i]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
    }
    return bad == 0;
}

// The formats: a row is bytes(D) bytes on the wire, on any address that is a multiple of its elements' size.

struct WireFp32 {
    static constexpr std::size_t bytes(std::size_t dim) { return 4 * dim; }
    static void encode(const float* row, std::byte* out, std::size_t dim) {
        std::memcpy(out, row, bytes(dim));
    }
    static void decode(const std::byte* in, float* row, std::size_t dim) { std::memcpy(row, in, bytes(dim)); }
};

struct WireFp16 {
    static constexpr std::size_t bytes(std::size_t dim) { return 2 * dim; }
    static void encode(const float* row, std::byte* out, std::size_t dim) {
        encode_half(row, reinterpret_cast<Half*>(out), dim);
    }
    static void decode(const std::byte* in, float* row, std::size_t dim) {
        decode_half(reinterpret_cast<const Half*>(in), row, dim);
    }
};

// The upper half of an fp32: its range with 8 bits of precision. To nearest, ties to even; a NaN stays one.
struct WireBf16 {
    static constexpr std::size_t bytes(std::size_t dim) { return 2 * dim; }
    static void encode(const float* row, std::byte* out, std::size_t dim) {
        auto* const to = reinterpret_cast<std::uint16_t*>(out);
        for (std::size_t d = 0; d < dim; ++d) {
            const std::uint32_t bits = bits_of(row[d]);
            const std::uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
            const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
            to[d] = static_cast<std::uint16_t>((nan ? bits | 0x400000u : rounded) >> 16);
        }
    }
    static void decode(const std::byte* in, float* row, std::size_t dim) {
        const auto* const from = reinterpret_cast<const std::uint16_t*>(in);
        for (std::size_t d = 0; d < dim; ++d) row[d] = float_of(static_cast<std::uint32_t>(from[d]) << 16);
    }
};

// fp16 of row / (largest magnitude of the row) * kKappa, then that magnitude as an fp32: nothing overflows,
// and elements are as exact as fp16's 11 bits down to 2^-29 of the row's largest, however small that is.
// A row with an infinite or NaN element arrives as NaNs.
struct WireScaledFp16 {
    static constexpr float kKappa = 32768.0f;  // a power of two below fp16's largest: undoing it is exact
    static constexpr std::size_t bytes(std::size_t dim) { return 2 * dim + 4; }

    // Of the bits, where NaN > infinity > the finite: a float maximum would lose NaNs.
    static float largest(const float* row, std::size_t dim) {
        std::uint32_t most = 0;
        for (std::size_t d = 0; d < dim; ++d) most = std::max(most, bits_of(row[d]) & 0x7fffffffu);
        return float_of(most);
    }

    static void encode(const float* row, std::byte* out, std::size_t dim) {
        const float norm = largest(row, dim);
        std::memcpy(out + 2 * dim, &norm, sizeof norm);
        // kKappa / norm would overflow for a tiny norm: such a row is first made larger, exactly.
        const float up = norm < 0x1p-64f ? 0x1p64f : 1.0f;
        const float factor = norm > 0 ? kKappa / (norm * up) : 0.0f;
        auto* const to = reinterpret_cast<Half*>(out);
        std::size_t d = 0;
#ifdef __F16C__
        const __m256 ups = _mm256_set1_ps(up), factors = _mm256_set1_ps(factor);
        for (; d + 8 <= dim; d += 8) {
            const __m256 x = _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(row + d), ups), factors);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + d),
                             _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
        }
#endif
        for (; d < dim; ++d) {
            const float x = row[d] * up * factor;
            encode_half(&x, to + d, 1);
        }
    }

    static void decode(const std::byte* in, float* row, std::size_t dim) {
        float norm;
        std::memcpy(&norm, in + 2 * dim, sizeof norm);
        const auto* const from = reinterpret_cast<const Half*>(in);
        std::size_t d = 0;
        // In this order: norm / kKappa could be subnormal and lose bits.
#ifdef __F16C__
        const __m256 down = _mm256_set1_ps(1 / kKappa), norms = _mm256_set1_ps(norm);
        for (; d + 8 <= dim; d += 8) {
            const __m256 x = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + d)));
            _mm256_storeu_ps(row + d, _mm256_mul_ps(_mm256_mul_ps(x, down), norms));
        }
#endif
        for (; d < dim; ++d) {
            decode_half(from + d, row + d, 1);
            row[d] = row[d] * (1 / kKappa) * norm;
        }
    }
};

enum class Wire : std::uint8_t { kFp32, kFp16, kBf16, kScaledFp16 };

// run(W{}) with the format's struct.
template <typename Run>
auto with_wire(Wire wire, const Run& run) {
    switch (wire) {
        case Wire::kFp16:
            return run(WireFp16{});
        case Wire::kBf16:
            return run(WireBf16{});
        case Wire::kScaledFp16:
            return run(WireScaledFp16{});
        default:
            return run(WireFp32{});
    }
}

}  // namespace persia
