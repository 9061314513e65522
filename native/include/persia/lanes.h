// Eight floats at once. Explicitly, because the compiler unrolls short loops of a known length before it
// could vectorise them.
#pragma once

#include <cstddef>
#include <cstring>

namespace persia {

constexpr std::size_t kLanes = 8;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

inline Lanes load(const float* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline void store(float* to, const Lanes& lanes) { std::memcpy(to, &lanes, sizeof lanes); }

inline void copy(float* to, const float* from, std::size_t n) {
    std::size_t d = 0;
    for (; d + kLanes <= n; d += kLanes) store(to + d, load(from + d));
    for (; d < n; ++d) to[d] = from[d];
}

// to += from, n floats that don't overlap.
inline void add(float* to, const float* from, std::size_t n) {
    std::size_t d = 0;
    for (; d + kLanes <= n; d += kLanes) store(to + d, load(to + d) + load(from + d));
    for (; d < n; ++d) to[d] += from[d];
}

// to = from * factor.
inline void scale(float* to, const float* from, float factor, std::size_t n) {
    std::size_t d = 0;
    for (; d + kLanes <= n; d += kLanes) store(to + d, load(from + d) * factor);
    for (; d < n; ++d) to[d] = from[d] * factor;
}

// The sum of the lanes, in this order.
inline float sum(const Lanes& x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

}  // namespace persia
