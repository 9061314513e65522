#include "persia/codec.h"

namespace persia {

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

}  // namespace persia
