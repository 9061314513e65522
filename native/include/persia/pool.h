// Unique rows + indices -> pooled vectors and sequences, and the gradients back to unique rows.
//
// One call serves one group: features whose rows have the same dim and lie in one block.
// U unique rows of the group, D dim, B samples, P pooled features of the group, L longest sequence, N ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/span.h"
#include "persia/wire.h"

namespace persia {

// sqrtn: the sum over sqrt(number of ids). jagged: a sequence without padding, one vector for each id.
enum class Pooling : std::uint8_t { kSum, kMean, kSqrtn, kSequence, kJagged };

struct PoolFeature {
    std::size_t begin;  // ids [begin, end) of the batch are this feature's, in sample order
    std::size_t end;
    // [B+1] sample b has ids begin + [bags[b], bags[b+1]); empty: one id per sample
    Span<const std::uint32_t> bags;
    Pooling pooling;
    Span<const float> weights = {};  // [end - begin] what each id's row is multiplied by; empty: nothing

    bool has_bags() const { return !bags.empty(); }
    // One vector for each sample; the others have vectors of their ids.
    bool is_pooled() const { return pooling != Pooling::kSequence && pooling != Pooling::kJagged; }
    bool is_one_hot() const { return is_pooled() && !has_bags(); }
};

struct PoolGroup {
    std::size_t dim;  // D
    std::size_t num_samples;
    std::vector<PoolFeature> features;  // in the order of their ids

    std::size_t num_pooled() const;
    // Ids of the longest bag of a feature, at least 1 so that models never see an axis of length 0.
    std::size_t longest(const PoolFeature& feature) const;
    // Of a feature that isn't pooled: what its values are for the kernels, rows of so many vectors.
    std::size_t num_rows(const PoolFeature& feature) const;
    std::size_t num_vectors(const PoolFeature& feature) const;
    // Throws std::invalid_argument when features overlap, or bags or weights don't match their ids.
    void check() const;
};

struct PoolSequence {
    Span<float> values;  // [B, L, D] left-aligned, zeros behind the last id; jagged: [n, D] of its n ids
    Span<bool> mask;     // [B, L] true where there is an id; jagged: none
    std::size_t length;  // L; jagged: 1
};

// rows [U] are decoded as they are gathered. pooled is [B, P, D]; sequences has one entry per feature that
// isn't pooled. An empty bag gives zeros. Index is uint16_t or uint32_t; indices [N] are those of all ids.
// Throws std::out_of_range for a bad index.
template <typename Index>
void gather_pool_forward(const PoolGroup& group, ConstRows rows, Span<const Index> indices,
                         Span<float> pooled, const std::vector<PoolSequence>& sequences);

struct PoolSequenceGradient {
    Span<const float> values;  // [B, L, D], jagged: [n, D]; empty: zeros
    std::size_t length;
};

// Writes row_gradients [U], zeros for a row that no id uses. The sum of a row's gradients is that of its ids
// in ascending order, in fp32. An empty pooled_gradient means zeros. Returns whether all sums are finite,
// before they are encoded. Throws std::out_of_range for a bad index.
template <typename Index>
bool gather_pool_backward(const PoolGroup& group, Span<const float> pooled_gradient,
                          const std::vector<PoolSequenceGradient>& sequence_gradients,
                          Span<const Index> indices, Rows row_gradients);

}  // namespace persia
