// The whole of DLRM's dense network, forward and backward, a few samples at a time: they pass through all
// layers while they are in the core's cache, and of what lies between layers only the outputs of hidden ones
// are written to memory, for the backward.
//
// B samples, V vectors of dim D; K inputs and N outputs of a layer, with a ReLU behind all but the last of
// `top`. `bottom` makes vector 0 of the dense features; without it all vectors are given.
#pragma once

#include <cstddef>
#include <vector>

#include "persia/interaction.h"
#include "persia/span.h"
#include "persia/thread_team.h"

namespace persia {

struct DenseLayer {
    std::size_t num_inputs, num_outputs;
    Span<const float> weight;  // [N, K]
    Span<const float> bias;    // [N]
};

struct Dlrm {
    std::size_t num_samples;
    std::vector<DenseLayer> bottom;  // the last one's N is D
    InteractionShape shape;
    std::vector<DenseLayer> top;  // the first one's K is W, see interaction.h
    Span<const float> dense;      // [B, K] of the first of `bottom`; empty without it
    Span<const float> vectors;    // [B, V - 1, D]; without `bottom` [B, V, D]
    bool bf16 = false;  // factors of the layers' products are rounded to it, sums aren't: if has_bf16()

    std::size_t num_given() const { return shape.num_vectors - !bottom.empty(); }  // vectors
    std::size_t kept_width() const;  // outputs of all hidden layers
    std::size_t kept_size() const;   // floats that the forward keeps for the backward
};

// Where gradients go; those of inputs are left out where there is no place for them.
struct DlrmGradients {
    struct Layer {
        Span<float> weight, bias;
    };
    Span<float> dense, vectors;
    std::vector<Layer> bottom, top;
};

// Each sum is in the order of its terms, and gradients of parameters are first summed over parts of a fixed
// number of samples: so results don't depend on the number of threads.
//
// out [B, N of the last]; kept [kept_size()], in an order of its own.
void dlrm_forward(const Dlrm& dlrm, Span<float> kept, Span<float> out, ThreadTeam& team);

// kept: of the forward; gradient: of its out.
void dlrm_backward(const Dlrm& dlrm, Span<const float> kept, Span<const float> gradient,
                   const DlrmGradients& to, ThreadTeam& team);

}  // namespace persia
