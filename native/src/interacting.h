// The pairwise interaction (interaction.h) of a panel of samples (panels.h), in both directions.
#pragma once

#include <cstddef>

#include "multiply.h"
#include "panels.h"
#include "persia/interaction.h"
#include "persia/lanes.h"

namespace persia {
namespace {

constexpr std::size_t row_begin(std::size_t i) { return i * (i - (i > 0)) / 2; }  // of (i, 0), (i, 1), ...

// Products of vectors [i, i + kRows) with vectors [j, j + kCols), of half a panel.
template <std::size_t kRows, std::size_t kCols>
void products(const float* vectors, std::size_t dim, std::size_t i, std::size_t j, float* out) {
    Lanes sum[kRows][kCols] = {};
    const std::size_t stride = dim * kPanel;
    const float *left = vectors + i * stride, *right = vectors + j * stride;
    for (std::size_t d = 0; d < dim; ++d, left += kPanel, right += kPanel) {
        Lanes column[kCols];
#pragma GCC unroll 8
        for (std::size_t c = 0; c < kCols; ++c) column[c] = load(right + c * stride);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r) {
            const Lanes row = load(left + r * stride);
#pragma GCC unroll 8
            for (std::size_t c = 0; c < kCols; ++c) sum[r][c] += row * column[c];
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (std::size_t c = 0; c < kCols; ++c)
            if (i + r > j + c) store(out + (row_begin(i + r) + j + c) * kPanel, sum[r][c]);
    }
}

template <std::size_t kRows>
void row_products(const float* vectors, std::size_t dim, std::size_t i, float* out) {
    std::size_t j = 0;
    const std::size_t end = i + kRows - 1;  // the last row has no product with itself
    for (; j + 3 <= end; j += 3) products<kRows, 3>(vectors, dim, i, j, out);
    if (j + 2 == end) products<kRows, 2>(vectors, dim, i, j, out);
    if (j + 1 == end) products<kRows, 1>(vectors, dim, i, j, out);
}

// From a panel's vectors [V, D] to its interaction [W].
void interact(const InteractionShape& shape, const float* vectors, float* out) {
    const std::size_t copied = shape.num_copied * shape.dim * kPanel;
    std::copy_n(vectors, copied, out);
    for (std::size_t half = 0; half < kPanel; half += kLanes) {
        const float* const from = vectors + half;
        float* const to = out + copied + half;
        std::size_t i = 0;
        for (; i + 4 <= shape.num_vectors; i += 4) row_products<4>(from, shape.dim, i, to);
        if (i + 3 == shape.num_vectors) row_products<3>(from, shape.dim, i, to), i += 3;
        for (; i < shape.num_vectors; ++i) row_products<1>(from, shape.dim, i, to);
    }
}

// Gradients of vectors [i, i + kRows), elements [d, d + kCols), of half a panel: to what is there is added,
// over the others j in their order, the gradient of product (i, j) times vector j.
template <std::size_t kRows, std::size_t kCols>
void gradients(const InteractionShape& shape, const float* vectors, const float* pairs, std::size_t i,
               std::size_t d, float* out) {
    Lanes sum[kRows][kCols];
    const std::size_t stride = shape.dim * kPanel;
    vectors += d * kPanel;
    out += i * stride + d * kPanel;
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (std::size_t c = 0; c < kCols; ++c) sum[r][c] = load(out + r * stride + c * kPanel);
    }
    const auto read = [&](std::size_t j, Lanes(&row)[kCols]) {
#pragma GCC unroll 8
        for (std::size_t c = 0; c < kCols; ++c) row[c] = load(vectors + j * stride + c * kPanel);
    };
    const auto add = [&](std::size_t r, const float* pair, const Lanes(&row)[kCols]) {
        const Lanes factor = load(pair);
#pragma GCC unroll 8
        for (std::size_t c = 0; c < kCols; ++c) sum[r][c] += factor * row[c];
    };
    Lanes row[kCols];
    for (std::size_t j = 0; j < i; ++j) {
        read(j, row);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r) add(r, pairs + (row_begin(i + r) + j) * kPanel, row);
    }
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kRows; ++j) {
        read(i + j, row);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r)
            if (r != j) add(r, pairs + (row_begin(i + std::max(r, j)) + i + std::min(r, j)) * kPanel, row);
    }
    const float* below = pairs + (row_begin(i + kRows) + i) * kPanel;
    for (std::size_t j = i + kRows; j < shape.num_vectors; below += j * kPanel, ++j) {
        read(j, row);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r) add(r, below + r * kPanel, row);
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (std::size_t c = 0; c < kCols; ++c) store(out + r * stride + c * kPanel, sum[r][c]);
    }
}

template <std::size_t kRows>
void row_gradients(const InteractionShape& shape, const float* vectors, const float* pairs, std::size_t i,
                   float* out) {
    std::size_t d = 0;
    for (; d + 4 <= shape.dim; d += 4) gradients<kRows, 4>(shape, vectors, pairs, i, d, out);
    for (; d < shape.dim; ++d) gradients<kRows, 1>(shape, vectors, pairs, i, d, out);
}

// From the gradient [W] of a panel's interaction to that of its vectors [V, D].
void interact_backward(const InteractionShape& shape, const float* vectors, const float* gradient,
                       float* out) {
    const std::size_t copied = shape.num_copied * shape.dim * kPanel;
    std::copy_n(gradient, copied, out);
    std::fill(out + copied, out + shape.num_vectors * shape.dim * kPanel, 0.0f);
    for (std::size_t half = 0; half < kPanel; half += kLanes) {
        const float *const from = vectors + half, *const pairs = gradient + copied + half;
        std::size_t i = 0;
        for (; i + 3 <= shape.num_vectors; i += 3) row_gradients<3>(shape, from, pairs, i, out + half);
        for (; i < shape.num_vectors; ++i) row_gradients<1>(shape, from, pairs, i, out + half);
    }
}

}  // namespace
}  // namespace persia
