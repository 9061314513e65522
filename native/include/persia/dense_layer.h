// A linear layer, forward and backward, on values of the samples or on the pairwise interaction of their
// vectors. The interaction is never written to memory: a few samples at a time stay in the core's cache.
//
// B samples, K inputs and N outputs of the layer; of an interaction (interaction.h), K = W.
#pragma once

#include <cstddef>

#include "persia/interaction.h"
#include "persia/span.h"
#include "persia/thread_team.h"

namespace persia {

struct DenseLayer {
    std::size_t num_samples;
    std::size_t num_inputs;
    std::size_t num_outputs;
    bool relu;                 // behind the layer
    Span<const float> weight;  // [N, K]
    Span<const float> bias;    // [N]
};

// What the layer is applied to: `values` [B, K], or, where `interacts`, the interaction of `vectors`.
struct DenseInputs {
    bool interacts;
    Span<const float> values;
    InteractionShape shape;
    InteractionVectors<const float> vectors;
};

// Where gradients go; that of inputs is left out where there is no place for it.
struct DenseGradients {
    Span<float> values;  // [B, K]
    InteractionVectors<float> vectors;
    Span<float> weight;  // [N, K]
    Span<float> bias;    // [N]
};

// Each sum is in the order of its terms, and gradients of parameters are first summed over parts of a fixed
// number of samples: so results don't depend on the number of threads.
void dense_forward(const DenseLayer& layer, const DenseInputs& inputs, Span<float> out, ThreadTeam& team);

// `out`: of the forward; `gradient`: its gradient [B, N].
void dense_backward(const DenseLayer& layer, const DenseInputs& inputs, Span<const float> out,
                    Span<const float> gradient, const DenseGradients& to, ThreadTeam& team);

}  // namespace persia
