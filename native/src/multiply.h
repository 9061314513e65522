// Products of small matrices that lie in the core's cache, with panels (panels.h) on the right.
//
// Compiled with contraction of a * b + c, see CMakeLists.txt: here each product is added to one sum, in one
// rounding, so the result doesn't depend on what the compiler makes of the loops.
#pragma once

#include <cstddef>
#include <type_traits>

#include "panels.h"
#include "persia/lanes.h"

namespace persia {
namespace {

template <std::size_t n>
using Size = std::integral_constant<std::size_t, n>;

// A matrix of whose elements each is multiplied with a whole row of a panel.
struct Left {
    const float* data;
    std::size_t row, column;  // from one to the next
};

// Sums of some rows of a panel. With six rows, what a core with 16 vector registers can hold, the multipliers
// never wait.
template <std::size_t kRows>
struct Sums {
    Lanes low[kRows], high[kRows];

    void load(const float* from) {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r)
            low[r] = persia::load(from + r * kPanel), high[r] = persia::load(from + r * kPanel + kLanes);
    }

    void store(float* to) const {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r)
            persia::store(to + r * kPanel, low[r]), persia::store(to + r * kPanel + kLanes, high[r]);
    }

    void fill(const float* values) {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r) low[r] = high[r] = Lanes{} + values[r];
    }

    void relu() {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r) {  // NaN stays
            low[r] = low[r] < 0 ? Lanes{} : low[r];
            high[r] = high[r] < 0 ? Lanes{} : high[r];
        }
    }

    // Where a ReLU made these, nothing passes back.
    void relu_backward(const float* made) {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r) {
            low[r] = persia::load(made + r * kPanel) <= 0 ? Lanes{} : low[r];
            high[r] = persia::load(made + r * kPanel + kLanes) <= 0 ? Lanes{} : high[r];
        }
    }

    // Adds left [kRows, depth] times right [depth, kPanel], each sum in the order of its terms.
    __attribute__((always_inline)) void add(Left left, std::size_t depth, const float* right) {
        for (std::size_t p = 0; p < depth; ++p, left.data += left.column, right += kPanel) {
            const Lanes right_low = persia::load(right), right_high = persia::load(right + kLanes);
#pragma GCC unroll 8
            for (std::size_t r = 0; r < kRows; ++r) {
                const float factor = left.data[r * left.row];
                low[r] += factor * right_low;
                high[r] += factor * right_high;
            }
        }
    }
};

// run(Size<rows of a tile>, first row) for tiles of all rows.
template <typename Run>
void for_tiles(std::size_t rows, const Run& run) {
    std::size_t i = 0;
    for (; i + 6 <= rows; i += 6) run(Size<6>(), i);
    for (; i + 4 <= rows; i += 4) run(Size<4>(), i);
    for (; i < rows; ++i) run(Size<1>(), i);
}

}  // namespace
}  // namespace persia
