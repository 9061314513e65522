// Panels: values of kPanel samples, value by value. A row holds one value of all of them, so that the samples
// are the lanes of vectors, and rows lie one after the other whatever the widths are.
#pragma once

#include <algorithm>
#include <cstddef>

#include "persia/lanes.h"

namespace persia {
namespace {

constexpr std::size_t kPanel = 2 * kLanes;

typedef int Places __attribute__((vector_size(kLanes * sizeof(int))));

// Panels, each `stride` floats after the one before.
template <typename Float>
struct Panels {
    Float* data;
    std::size_t stride;

    Float* operator[](std::size_t p) const { return data + p * stride; }
};

std::size_t whole_panels(std::size_t n) { return (n + kPanel - 1) / kPanel; }

// to[column][row] = from[row][column] of 8 x 8 floats.
inline void transpose(const float* from, std::size_t from_stride, float* to, std::size_t to_stride) {
    Lanes a[kLanes], b[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) a[i] = load(from + i * from_stride);
    for (std::size_t i = 0; i < kLanes; i += 2) {
        b[i] = __builtin_shuffle(a[i], a[i + 1], Places{0, 8, 1, 9, 4, 12, 5, 13});
        b[i + 1] = __builtin_shuffle(a[i], a[i + 1], Places{2, 10, 3, 11, 6, 14, 7, 15});
    }
    for (std::size_t i = 0; i < kLanes; i += 4) {
        for (std::size_t k = 0; k < 2; ++k) {
            a[i + 2 * k] = __builtin_shuffle(b[i + k], b[i + k + 2], Places{0, 1, 8, 9, 4, 5, 12, 13});
            a[i + 2 * k + 1] = __builtin_shuffle(b[i + k], b[i + k + 2], Places{2, 3, 10, 11, 6, 7, 14, 15});
        }
    }
    for (std::size_t i = 0; i < 4; ++i) {
        store(to + i * to_stride, __builtin_shuffle(a[i], a[i + 4], Places{0, 1, 2, 3, 8, 9, 10, 11}));
        store(to + (i + 4) * to_stride,
              __builtin_shuffle(a[i], a[i + 4], Places{4, 5, 6, 7, 12, 13, 14, 15}));
    }
}

// to[column * to_stride + row] = from[row * from_stride + column] of rows x columns floats.
inline void transpose(const float* from, std::size_t from_stride, std::size_t rows, std::size_t columns,
                      float* to, std::size_t to_stride) {
    const std::size_t whole = columns / kLanes * kLanes;
    for (std::size_t column = 0; column < whole; column += kLanes) {
        std::size_t row = 0;
        for (; row + kLanes <= rows; row += kLanes)
            transpose(from + row * from_stride + column, from_stride, to + column * to_stride + row,
                      to_stride);
        for (; row < rows; ++row)
            for (std::size_t c = column; c < column + kLanes; ++c)
                to[c * to_stride + row] = from[row * from_stride + c];
    }
    for (std::size_t column = whole; column < columns; ++column)
        for (std::size_t row = 0; row < rows; ++row)
            to[column * to_stride + row] = from[row * from_stride + column];
}

// `count` samples [count, width], at most kPanel, to a panel; what lacks is zero.
inline void to_panel(const float* from, std::size_t count, std::size_t width, float* panel) {
    if (count < kPanel) std::fill_n(panel, width * kPanel, 0.0f);
    transpose(from, width, count, width, panel, kPanel);
}

// The first `count` samples of a panel to [count, width], each sample `stride` after the one before.
inline void from_panel(const float* panel, std::size_t count, std::size_t width, float* to,
                       std::size_t stride) {
    transpose(panel, kPanel, width, count, to, stride);
}

}  // namespace
}  // namespace persia
