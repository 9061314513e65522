// Unique rows + indices -> pooled vectors and sequences, and the gradients back to unique rows.
//
// One call serves one group: features whose rows have the same dim and lie in one block.
// U unique rows of the group, D dim, B samples, P pooled features of the group, L longest sequence, N ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/codec.h"

namespace persia {

enum class Pooling : std::uint8_t {
    kSum,
    kMean,
    kSqrtn,
    kSequence
};  // sqrtn: the sum over sqrt(number of ids)

struct PoolFeature {
    std::size_t begin;  // ids [begin, end) of the batch are this feature's, in sample order
    std::size_t end;
    const std::uint32_t*
        bags;  // [B+1] sample b has ids begin + [bags[b], bags[b+1]); null: one id per sample
    Pooling pooling;
};

struct PoolGroup {
    std::size_t num_rows;  // U
    std::size_t dim;       // D
    std::size_t num_samples;
    std::vector<PoolFeature> features;  // in the order of their ids

    std::size_t num_pooled() const;
    // Ids of the longest bag of a feature, at least 1 so that models never see an axis of length 0.
    std::size_t longest(const PoolFeature& feature) const;
    // Throws std::invalid_argument when features overlap or their bags don't match their ids.
    void check() const;
};

struct PoolSequence {
    float* values;       // [B, L, D] left-aligned, zeros behind the last id
    bool* mask;          // [B, L] true where there is an id
    std::size_t length;  // L
};

// rows is [U] rows of wire format `wire`, decoded as they are gathered. pooled is [B, P, D]; sequences has
// one entry per sequence feature. An empty bag gives zeros. Index is std::uint16_t or std::uint32_t; indices
// are those of all N ids. Throws std::out_of_range for a bad index.
template <typename Index>
void gather_pool_forward(const PoolGroup& group, Wire wire, const std::byte* rows, const Index* indices,
                         float* pooled, const std::vector<PoolSequence>& sequences);

struct PoolSequenceGradient {
    const float* values;  // [B, L, D]; null: zeros
    std::size_t length;
};

// row_gradients is [U] rows of wire format `wire`, zeros for a row that no id uses. The sum of a row's
// gradients is that of its ids in ascending order, in fp32. A null pooled_gradient means zeros. Throws
// std::out_of_range for a bad index.
template <typename Index>
void gather_pool_backward(const PoolGroup& group, const float* pooled_gradient,
                          const std::vector<PoolSequenceGradient>& sequence_gradients, const Index* indices,
                          Wire wire, std::byte* row_gradients);

}  // namespace persia
