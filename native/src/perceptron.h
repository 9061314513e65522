// Linear layers on panels (panels.h), in both directions. `scratch`: room for scratch_size() floats.
#pragma once

#include <cstddef>

#include "multiply.h"
#include "panels.h"
#include "persia/dlrm.h"

namespace persia {
namespace {

// Samples that are computed at a time in the backward: as many as sums of weight gradients stay in registers
// for.
constexpr std::size_t kBlock = 4 * kPanel;

// widest: inputs or outputs of any layer.
std::size_t scratch_size(const DenseLayer&, std::size_t) { return kBlock * kPanel; }

// out [N] of inputs [K], for so many panels of samples.
void forward_layer(const DenseLayer& layer, std::size_t panels, Panels<const float> inputs, bool relu,
                   Panels<float> out, float*) {
    for (std::size_t p = 0; p < panels; ++p) {
        for_tiles(layer.num_outputs, [&](auto rows, std::size_t n) {
            Sums<rows()> sums;
            sums.fill(&layer.bias[n]);
            sums.add({&layer.weight[n * layer.num_inputs], layer.num_inputs, 1}, layer.num_inputs, inputs[p]);
            if (relu) sums.relu();
            sums.store(out[p] + n * kPanel);
        });
    }
}

// The gradient of inputs [K] from `slopes` [N], that of the layer's sums. made: the inputs, if they come from
// a ReLU, else null.
void backward_inputs(const DenseLayer& layer, std::size_t panels, Panels<const float> slopes,
                     Panels<const float> made, Panels<float> gradient, float*) {
    for (std::size_t p = 0; p < panels; ++p) {
        for_tiles(layer.num_inputs, [&](auto rows, std::size_t k) {
            Sums<rows()> sums{};
            sums.add({&layer.weight[k], 1, layer.num_inputs}, layer.num_outputs, slopes[p]);
            if (made.data != nullptr) sums.relu_backward(made[p] + k * kPanel);
            sums.store(gradient[p] + k * kPanel);
        });
    }
}

// Sums of a layer's gradients: of weights as panels [whole_panels(N)][K][kPanel] of outputs, and behind them
// those of biases.
std::size_t sums_size(const DenseLayer& layer) {
    return whole_panels(layer.num_outputs) * kPanel * (layer.num_inputs + 1);
}

// Adds a block's gradients to `sums`.
void backward_weights(const DenseLayer& layer, std::size_t count, Panels<const float> inputs,
                      Panels<const float> slopes, float* sums, float* scratch) {
    float* const turned = scratch;  // slopes, sample by sample
    float* biases = sums + whole_panels(layer.num_outputs) * kPanel * layer.num_inputs;
    for (std::size_t n = 0; n < layer.num_outputs; n += kPanel, biases += kPanel) {
        const std::size_t outputs = std::min(kPanel, layer.num_outputs - n);
        Sums<1> bias;
        bias.load(biases);
        for (std::size_t begin = 0; begin < count; begin += kPanel) {
            float* const to = turned + begin * kPanel;
            from_panel(slopes[begin / kPanel] + n * kPanel, kPanel, outputs, to, kPanel);
            for (std::size_t s = 0; s < std::min(kPanel, count - begin); ++s) {
                bias.low[0] += load(to + s * kPanel);
                bias.high[0] += load(to + s * kPanel + kLanes);
            }
        }
        bias.store(biases);
        for_tiles(layer.num_inputs, [&](auto rows, std::size_t k) {
            Sums<rows()> tile;
            float* const at = sums + (n * layer.num_inputs / kPanel + k) * kPanel;
            tile.load(at);
            for (std::size_t begin = 0; begin < count; begin += kPanel)
                tile.add({inputs[begin / kPanel] + k * kPanel, kPanel, 1}, std::min(kPanel, count - begin),
                         turned + begin * kPanel);
            tile.store(at);
        });
    }
}

// Writes what was summed as the gradients of the layer's weight [N, K] and bias [N].
void write_sums(const DenseLayer& layer, const float* sums, Span<float> weight, Span<float> bias) {
    const std::size_t size = kPanel * layer.num_inputs;
    const float* const biases = sums + whole_panels(layer.num_outputs) * size;
    for (std::size_t n = 0; n < layer.num_outputs; n += kPanel, sums += size)
        from_panel(sums, std::min(kPanel, layer.num_outputs - n), layer.num_inputs,
                   &weight[n * layer.num_inputs], layer.num_inputs);
    std::copy_n(biases, layer.num_outputs, bias.data());
}

}  // namespace
}  // namespace persia
