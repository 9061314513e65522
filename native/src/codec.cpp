#include "persia/codec.h"

#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace persia {
namespace {

std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace

Half encode_half_portable(float value) {
    const std::uint32_t bits = bits_of(value);
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    std::uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // NaN: quiet, payload kept
    } else if (magnitude >= 0x477ff000u) {
        half = 0x7c00u;  // 65520 and more round to infinity
    } else if (magnitude >= 0x38800000u) {
        const std::uint32_t odd = (magnitude >> 13) & 1u;
        half = (magnitude - 0x38000000u + 0xfffu + odd) >> 13;
    } else {
        // Adding 0.5 puts the unit of a subnormal fp16 (2^-24) at the last bit of the sum: the FPU rounds.
        half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    }
    return {static_cast<std::uint16_t>(sign | half)};
}

float decode_half_portable(Half value) {
    const std::uint32_t sign = (value.bits & 0x8000u) << 16;
    const std::uint32_t magnitude = value.bits & 0x7fffu;
    if (magnitude > 0x7c00u) return float_of(sign | 0x7fc00000u | (magnitude << 13));  // NaN, made quiet
    if (magnitude == 0x7c00u) return float_of(sign | 0x7f800000u);
    if (magnitude >= 0x400u) return float_of(sign | ((magnitude << 13) + 0x38000000u));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
    return float_of(sign | bits_of(subnormal));
}

#ifdef __F16C__

void encode_half(const float* from, Half* to, std::size_t n) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
    }
    for (; i < n; ++i) to[i].bits = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
}

void decode_half(const Half* from, float* to, std::size_t n) {
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
    }
    for (; i < n; ++i) to[i] = _cvtsh_ss(from[i].bits);
}

#else

void encode_half(const float* from, Half* to, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) to[i] = encode_half_portable(from[i]);
}

void decode_half(const Half* from, float* to, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) to[i] = decode_half_portable(from[i]);
}

#endif

bool all_finite(const float* values, std::size_t n) {
    // No early exit: a branch per element would keep the loop from being vectorised.
    std::uint32_t bad = 0;
    for (std::size_t i = 0; i < n; ++i) bad |= (bits_of(values[i]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
    return bad == 0;
}

}  // namespace persia
