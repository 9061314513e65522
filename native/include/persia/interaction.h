// DLRM's pairwise interaction: the dot products of all pairs of a sample's vectors, beside vectors
// themselves.
//
// B samples, V vectors of dim D, P = V (V - 1) / 2 pairs, C copied vectors, W = C * D + P.
#pragma once

#include <cstddef>

namespace persia {

// Where a sample's vectors lie: vector 0 in `first` [B, D] unless that is null, the others in `rest`
// [B, V - 1, D], or all in `rest` [B, V, D]. So nobody has to bring them together.
template <typename Float>
struct InteractionVectors {
    Float* first;
    Float* rest;
};

struct InteractionShape {
    std::size_t num_samples;
    std::size_t num_vectors;  // V
    std::size_t dim;
    std::size_t num_copied;  // C <= V

    std::size_t num_pairs() const { return num_vectors * (num_vectors - (num_vectors > 0)) / 2; }
    std::size_t width() const { return num_copied * dim + num_pairs(); }
};

// out [B, W]: the first C vectors, then products (1, 0), (2, 0), (2, 1), (3, 0), ...; each is summed in the
// order of the elements, so results don't depend on B or on where the vectors lie.
void interaction_forward(const InteractionShape& shape, InteractionVectors<const float> vectors, float* out);

// From the gradient [B, W] of out to those of the vectors, laid out like them.
void interaction_backward(const InteractionShape& shape, InteractionVectors<const float> vectors,
                          const float* gradient, InteractionVectors<float> out);

}  // namespace persia
