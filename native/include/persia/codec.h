// fp16 <-> fp32, as IEEE 754 and NumPy do it: round to nearest, ties to even; too large becomes infinity.
#pragma once

#include <cstddef>
#include <cstdint>

namespace persia {

struct Half {
    std::uint16_t bits;
};
static_assert(sizeof(Half) == 2);

// In software, for CPUs without conversion instructions; also the reference for the tests.
Half encode_half_portable(float value);
float decode_half_portable(Half value);

// n elements; the arrays need no alignment beyond their type's and must not overlap.
void encode_half(const float* from, Half* to, std::size_t n);
void decode_half(const Half* from, float* to, std::size_t n);

// True if no element is infinite or NaN.
bool all_finite(const float* values, std::size_t n);

}  // namespace persia
