// Products of small matrices that lie in the core's cache.
//
// Compiled with contraction of a * b + c, see CMakeLists.txt: here each product is added to one sum, in one
// rounding, so the result doesn't depend on what the compiler makes of the loops.
#pragma once

#include <cstddef>

#include "persia/lanes.h"

namespace persia {
namespace {

// The sums that a core with 16 vector registers can hold: with 6 rows of 2 vectors the multipliers never
// wait.
constexpr std::size_t kTileRows = 6, kTileVectors = 2;

// A matrix of whose elements each is multiplied with a whole row of the other.
struct Left {
    const float* data;
    std::size_t row, column;  // from one to the next
};

template <std::size_t kRows, std::size_t kVectors>
void multiply_tile(Left left, std::size_t depth, const float* right, std::size_t right_stride, float* out,
                   std::size_t out_stride) {
    Lanes sum[kRows][kVectors];
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (std::size_t c = 0; c < kVectors; ++c) sum[r][c] = load(out + r * out_stride + c * kLanes);
    }
    for (std::size_t p = 0; p < depth; ++p, left.data += left.column, right += right_stride) {
        Lanes line[kVectors];
#pragma GCC unroll 8
        for (std::size_t c = 0; c < kVectors; ++c) line[c] = load(right + c * kLanes);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < kRows; ++r) {
            const float factor = left.data[r * left.row];
#pragma GCC unroll 8
            for (std::size_t c = 0; c < kVectors; ++c) sum[r][c] += factor * line[c];
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (std::size_t c = 0; c < kVectors; ++c) store(out + r * out_stride + c * kLanes, sum[r][c]);
    }
}

template <std::size_t kVectors>
void multiply_columns(const Left& left, std::size_t rows, std::size_t depth, const float* right,
                      std::size_t right_stride, float* out, std::size_t out_stride) {
    std::size_t i = 0;
    for (; i + kTileRows <= rows; i += kTileRows)
        multiply_tile<kTileRows, kVectors>({left.data + i * left.row, left.row, left.column}, depth, right,
                                           right_stride, out + i * out_stride, out_stride);
    for (; i < rows; ++i)
        multiply_tile<1, kVectors>({left.data + i * left.row, left.row, left.column}, depth, right,
                                   right_stride, out + i * out_stride, out_stride);
}

// out [rows, columns] += left [rows, depth] times right [depth, columns], each sum in the order of its terms.
// `columns` is a multiple of kLanes.
void multiply_add(const Left& left, std::size_t rows, std::size_t depth, const float* right,
                  std::size_t right_stride, std::size_t columns, float* out, std::size_t out_stride) {
    std::size_t j = 0;
    for (; j + kTileVectors * kLanes <= columns; j += kTileVectors * kLanes)
        multiply_columns<kTileVectors>(left, rows, depth, right + j, right_stride, out + j, out_stride);
    if (j < columns) multiply_columns<1>(left, rows, depth, right + j, right_stride, out + j, out_stride);
}

}  // namespace
}  // namespace persia
