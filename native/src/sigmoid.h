// The logistic function of eight floats at once, by a polynomial. For sources that are compiled with
// contraction of a * b + c.
#pragma once

#include <cstdint>
#include <cstring>

#include "persia/lanes.h"

namespace persia {
namespace {

typedef std::uint32_t Words __attribute__((vector_size(kLanes * sizeof(std::uint32_t))));

// To the last bits; beyond what floats hold it stays at the ends.
Lanes exponential(Lanes x) {
    constexpr float kLowest = -87.0f, kHighest = 88.0f;
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are a whole number
    x = x < kLowest ? Lanes{} + kLowest : x;
    x = x > kHighest ? Lanes{} + kHighest : x;  // NaN stays
    const Lanes moved = x * 1.44269504088896341f + kMagic;
    const Lanes whole = moved - kMagic;
    const Lanes rest = x - whole * 0.693359375f - whole * -2.12194440e-4f;
    Lanes y = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * (rest * rest) + rest + 1.0f;
    Words bits;
    std::memcpy(&bits, &moved, sizeof bits);
    bits = (bits - 0x4B400000u + 127u) << 23;
    Lanes power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

Lanes sigmoid(const Lanes& x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace
}  // namespace persia
