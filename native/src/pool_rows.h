// What both directions of gather_pool need to know about a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>

#include "persia/pool.h"

namespace persia {

constexpr size_t kAhead = 8;  // rows fetched ahead of their use
constexpr size_t kAnyDim = 0;

// What a bag's sum is multiplied by. Empty bags are never scaled.
inline float bag_scale(Pooling pooling, size_t size) {
    if (pooling == Pooling::kMean) return 1.0f / static_cast<float>(size);
    if (pooling == Pooling::kSqrtn) return 1.0f / std::sqrt(static_cast<float>(size));
    return 1.0f;
}

// The first lines of a row; the CPU follows by itself.
inline void prefetch(const void* row, size_t bytes) {
    for (size_t at = 0; at < std::min<size_t>(bytes, 256); at += 64)
        __builtin_prefetch(static_cast<const std::byte*>(row) + at);
}

// run(integral_constant) with the dim if it is a usual one, else kAnyDim. With a dim known to the compiler
// loops over a row become a few vector instructions.
template <typename Run>
void with_dim(size_t dim, const Run& run) {
    switch (dim) {
        case 8:
            return run(std::integral_constant<size_t, 8>());
        case 16:
            return run(std::integral_constant<size_t, 16>());
        case 32:
            return run(std::integral_constant<size_t, 32>());
        case 64:
            return run(std::integral_constant<size_t, 64>());
        case 128:
            return run(std::integral_constant<size_t, 128>());
        default:
            return run(std::integral_constant<size_t, kAnyDim>());
    }
}

// to += row, one row of wire format W.
template <typename W, size_t kDim>
void add_row(float* __restrict to, const std::byte* row, size_t dim, float* room) {
    const size_t size = kDim == kAnyDim ? dim : kDim;
    const float* from = room;
    if constexpr (std::is_same_v<W, WireFp32>) {
        from = reinterpret_cast<const float*>(row);
    } else {
        W::decode(row, room, size);
    }
    for (size_t d = 0; d < size; ++d) to[d] += from[d];
}

}  // namespace persia
