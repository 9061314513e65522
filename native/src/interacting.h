// One sample's pairwise interaction, in both directions, for the files that compute it.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "persia/aligned_array.h"
#include "persia/interaction.h"
#include "persia/lanes.h"
#include "persia/prefetch.h"

namespace persia {
namespace {

typedef int Places __attribute__((vector_size(kLanes * sizeof(int))));

template <std::size_t n>
using Size = std::integral_constant<std::size_t, n>;

std::size_t padded(std::size_t n) { return (n + kLanes - 1) / kLanes * kLanes; }
std::size_t row_begin(std::size_t i) { return i * (i - (i > 0)) / 2; }  // of products (i, 0), (i, 1), ...

// to[column][row] = from[row][column] of 8 x 8 floats.
void transpose(const float* from, std::size_t from_stride, float* to, std::size_t to_stride) {
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

// n rows of `dim` floats, each at the next stride.
void copy_rows(float* to, std::size_t to_stride, const float* from, std::size_t from_stride, std::size_t n,
               std::size_t dim) {
    if (to_stride == dim && from_stride == dim) {
        std::memcpy(to, from, n * dim * sizeof(float));
        return;
    }
    for (std::size_t i = 0; i < n; ++i)
        std::memcpy(to + i * to_stride, from + i * from_stride, dim * sizeof(float));
}

// One sample's vectors as rows [V', D'], both padded with zeros to whole lanes.
class Rows {
  public:
    explicit Rows(const InteractionShape& shape)
        : stride_(padded(shape.dim)), num_rows_(padded(shape.num_vectors)), data_(stride_ * num_rows_) {
        std::fill(data_.data(), data_.data() + data_.size(), 0.0f);
    }

    void read(const InteractionShape& shape, const InteractionVectors<const float>& vectors,
              std::size_t sample) {
        const std::size_t dim = shape.dim, in_first = vectors.first.empty() ? 0 : 1;
        const std::size_t in_rest = shape.num_vectors - in_first;
        if (in_first) std::memcpy(data_.data(), &vectors.first[sample * dim], dim * sizeof(float));
        copy_rows(data_.data() + in_first * stride_, stride_, vectors.rest.data() + sample * in_rest * dim,
                  dim, in_rest, dim);
        // The next sample's, while this one is computed.
        prefetch(vectors.rest.data() + (sample + 1) * in_rest * dim, in_rest * dim * sizeof(float));
    }

    void write(const InteractionShape& shape, const InteractionVectors<float>& vectors,
               std::size_t sample) const {
        const std::size_t dim = shape.dim, in_first = vectors.first.empty() ? 0 : 1;
        const std::size_t in_rest = shape.num_vectors - in_first;
        if (in_first) std::memcpy(&vectors.first[sample * dim], data_.data(), dim * sizeof(float));
        copy_rows(vectors.rest.data() + sample * in_rest * dim, dim, (*this)[in_first], stride_, in_rest,
                  dim);
        prefetch(vectors.rest.data() + (sample + 1) * in_rest * dim, in_rest * dim * sizeof(float));
    }

    std::size_t stride() const { return stride_; }
    std::size_t num_rows() const { return num_rows_; }
    const float* operator[](std::size_t i) const { return data_.data() + i * stride_; }
    float* operator[](std::size_t i) { return data_.data() + i * stride_; }

  private:
    std::size_t stride_, num_rows_;
    AlignedArray<float> data_;
};

// Products of rows [i, i + kRows) with the kCols * 8 rows from j on, of which `columns` is the transpose.
// Whole vectors are written: what is too much is overwritten by later rows, or lies behind the last product.
template <std::size_t kRows, std::size_t kCols>
void products(const Rows& rows, const float* columns, std::size_t num_columns, std::size_t dim, std::size_t i,
              std::size_t j, float* out) {
    Lanes sum[kRows][kCols] = {};
    const float* const row = rows[i];
    for (std::size_t d = 0; d < dim; ++d) {
        Lanes column[kCols];
        for (std::size_t c = 0; c < kCols; ++c) column[c] = load(columns + d * num_columns + j + c * kLanes);
        for (std::size_t r = 0; r < kRows; ++r) {
            for (std::size_t c = 0; c < kCols; ++c) sum[r][c] += row[r * rows.stride() + d] * column[c];
        }
    }
    for (std::size_t c = kCols; c-- > 0;) {
        for (std::size_t r = 0; r < kRows; ++r) {
            if (i + r > j + c * kLanes) store(out + row_begin(i + r) + j + c * kLanes, sum[r][c]);
        }
    }
}

template <std::size_t kRows, std::size_t kCols>
void row_products(const Rows& rows, const float* columns, std::size_t dim, std::size_t i, float* out) {
    // From the right to the left, so that a row's overhang is gone when the next row's begin is written.
    std::size_t blocks = padded(i + kRows - 1) / kLanes;
    for (; blocks % kCols; --blocks)
        products<kRows, 1>(rows, columns, rows.num_rows(), dim, i, (blocks - 1) * kLanes, out);
    for (; blocks; blocks -= kCols)
        products<kRows, kCols>(rows, columns, rows.num_rows(), dim, i, (blocks - kCols) * kLanes, out);
}

// Gradients of vectors [i, i + kRows), elements [d, d + kCols * 8): the sum over the others j, in their
// order, of the gradient of product (i, j) times vector j.
template <std::size_t kRows, std::size_t kCols>
void gradients(const Rows& rows, std::size_t num_vectors, const float* pairs, std::size_t i, std::size_t d,
               float* out) {
    Lanes sum[kRows][kCols];
    const std::size_t stride = rows.stride();
    for (std::size_t r = 0; r < kRows; ++r) {
        for (std::size_t c = 0; c < kCols; ++c) sum[r][c] = load(out + (i + r) * stride + d + c * kLanes);
    }
    const auto add = [&](std::size_t r, float pair, const Lanes* row) {
        for (std::size_t c = 0; c < kCols; ++c) sum[r][c] += pair * row[c];
    };
    const auto each = [&](std::size_t from, std::size_t to, const auto& use) {
        for (std::size_t j = from; j < to; ++j) {
            Lanes row[kCols];
            for (std::size_t c = 0; c < kCols; ++c) row[c] = load(rows[j] + d + c * kLanes);
            use(j, row);
        }
    };
    const float* from[kRows];
    for (std::size_t r = 0; r < kRows; ++r) from[r] = pairs + row_begin(i + r);
    each(0, i, [&](std::size_t j, const Lanes* row) {
        for (std::size_t r = 0; r < kRows; ++r) add(r, from[r][j], row);
    });
    each(i, i + kRows, [&](std::size_t j, const Lanes* row) {
        for (std::size_t r = 0; r < kRows; ++r) {
            if (i + r > j) add(r, pairs[row_begin(i + r) + j], row);
            if (i + r < j) add(r, pairs[row_begin(j) + i + r], row);
        }
    });
    const float* below = pairs + row_begin(i + kRows) + i;
    each(i + kRows, num_vectors, [&](std::size_t j, const Lanes* row) {
        for (std::size_t r = 0; r < kRows; ++r) add(r, below[r], row);
        below += j;
    });
    for (std::size_t r = 0; r < kRows; ++r) {
        for (std::size_t c = 0; c < kCols; ++c) store(out + (i + r) * stride + d + c * kLanes, sum[r][c]);
    }
}

template <std::size_t kRows>
void row_gradients(const Rows& rows, std::size_t num_vectors, const float* pairs, std::size_t i, float* out) {
    std::size_t d = 0;
    for (; d + 2 * kLanes <= rows.stride(); d += 2 * kLanes)
        gradients<kRows, 2>(rows, num_vectors, pairs, i, d, out);
    if (d < rows.stride()) gradients<kRows, 1>(rows, num_vectors, pairs, i, d, out);
}

// Computes samples one after the other, in memory that they share.
class Interacting {
  public:
    explicit Interacting(const InteractionShape& shape)
        : shape_(shape),
          rows_(shape),
          sums_(shape),
          columns_(rows_.stride() * rows_.num_rows()),
          products_(shape.num_pairs() + kLanes) {}

    // out [W] of one sample.
    void forward(const InteractionVectors<const float>& vectors, std::size_t sample, float* out) {
        const std::size_t num_vectors = shape_.num_vectors, dim = shape_.dim;
        rows_.read(shape_, vectors, sample);
        for (std::size_t i = 0; i < rows_.num_rows(); i += kLanes) {
            for (std::size_t d = 0; d < rows_.stride(); d += kLanes)
                transpose(rows_[i] + d, rows_.stride(), columns_.data() + d * rows_.num_rows() + i,
                          rows_.num_rows());
        }
        // Some eight sums at a time: fewer would wait for each other, more would not fit the registers.
        const auto run = [&](auto num_rows, auto num_cols, std::size_t i) {
            row_products<num_rows(), num_cols()>(rows_, columns_.data(), dim, i, products_.data());
        };
        std::size_t i = 0;
        for (; i + 8 <= num_vectors; i += 8) run(Size<8>(), Size<1>(), i);
        for (; i + 3 <= num_vectors; i += 3) run(Size<3>(), Size<2>(), i);
        for (; i < num_vectors; ++i) run(Size<1>(), Size<4>(), i);
        copy_rows(out, dim, rows_[0], rows_.stride(), shape_.num_copied, dim);
        std::memcpy(out + shape_.num_copied * dim, products_.data(), shape_.num_pairs() * sizeof(float));
    }

    // From the gradient [W] of one sample's out to those of its vectors.
    void backward(const InteractionVectors<const float>& vectors, std::size_t sample, const float* gradient,
                  const InteractionVectors<float>& to) {
        const std::size_t num_vectors = shape_.num_vectors, num_copied = shape_.num_copied;
        rows_.read(shape_, vectors, sample);
        copy_rows(sums_[0], sums_.stride(), gradient, shape_.dim, num_copied, shape_.dim);
        std::fill(sums_[num_copied], sums_[num_vectors], 0.0f);
        const float* const pairs = gradient + num_copied * shape_.dim;
        std::size_t i = 0;
        for (; i + 4 <= num_vectors; i += 4) row_gradients<4>(rows_, num_vectors, pairs, i, sums_[0]);
        if (i + 2 < num_vectors) row_gradients<3>(rows_, num_vectors, pairs, i, sums_[0]), i += 3;
        for (; i < num_vectors; ++i) row_gradients<1>(rows_, num_vectors, pairs, i, sums_[0]);
        sums_.write(shape_, to, sample);
    }

  private:
    InteractionShape shape_;
    Rows rows_, sums_;
    AlignedArray<float> columns_, products_;
};

}  // namespace
}  // namespace persia
