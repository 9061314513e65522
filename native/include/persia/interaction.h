// DLRM's pairwise interaction: the dot products of all pairs of a sample's vectors, beside vectors
// themselves.
//
// Of each sample W values: its first C vectors, then products (1, 0), (2, 0), (2, 1), (3, 0), ..., each
// summed in the order of the elements, so results don't depend on B.
//
// B samples, V vectors of dim D, P = V (V - 1) / 2 pairs, C copied vectors, W = C * D + P.
#pragma once

#include <cstddef>

namespace persia {

struct InteractionShape {
    std::size_t num_vectors;  // V
    std::size_t dim;
    std::size_t num_copied;  // C <= V

    std::size_t num_pairs() const { return num_vectors * (num_vectors - (num_vectors > 0)) / 2; }
    std::size_t width() const { return num_copied * dim + num_pairs(); }
};

}  // namespace persia
