// Linear layers on panels (panels.h), in both directions.
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

// out [N] of a panel of inputs [K].
void forward_layer(const DenseLayer& layer, const float* inputs, bool relu, float* out) {
    for_tiles(layer.num_outputs, [&](auto rows, std::size_t n) {
        Sums<rows()> sums;
        sums.fill(&layer.bias[n]);
        sums.add({&layer.weight[n * layer.num_inputs], layer.num_inputs, 1}, layer.num_inputs, inputs);
        if (relu) sums.relu();
        sums.store(out + n * kPanel);
    });
}

// The gradient of a panel's inputs [K] from `slopes` [N], that of the layer's sums. made: the inputs, if they
// come from a ReLU, else null.
void backward_inputs(const DenseLayer& layer, const float* slopes, const float* made, float* gradient) {
    for_tiles(layer.num_inputs, [&](auto rows, std::size_t k) {
        Sums<rows()> sums{};
        sums.add({&layer.weight[k], 1, layer.num_inputs}, layer.num_outputs, slopes);
        if (made != nullptr) sums.relu_backward(made + k * kPanel);
        sums.store(gradient + k * kPanel);
    });
}

// Sums of a layer's gradients: of weights as panels [whole_panels(N)][K][kPanel] of outputs, and behind them
// those of biases.
std::size_t sums_size(const DenseLayer& layer) {
    return whole_panels(layer.num_outputs) * kPanel * (layer.num_inputs + 1);
}

// Panels of a block's samples, one after the other, each `stride` floats after the one before.
struct Block {
    const float* data;
    std::size_t stride;
};

// Adds a block's gradients to `sums`. turned: room for kBlock x kPanel.
void backward_weights(const DenseLayer& layer, Block inputs, Block slopes, std::size_t count, float* turned,
                      float* sums) {
    float* biases = sums + whole_panels(layer.num_outputs) * kPanel * layer.num_inputs;
    for (std::size_t n = 0; n < layer.num_outputs; n += kPanel, biases += kPanel) {
        const std::size_t outputs = std::min(kPanel, layer.num_outputs - n);
        Sums<1> bias;
        bias.load(biases);
        for (std::size_t begin = 0; begin < count; begin += kPanel) {
            float* const to = turned + begin * kPanel;
            from_panel(slopes.data + begin / kPanel * slopes.stride + n * kPanel, kPanel, outputs, to,
                       kPanel);
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
                tile.add({inputs.data + begin / kPanel * inputs.stride + k * kPanel, kPanel, 1},
                         std::min(kPanel, count - begin), turned + begin * kPanel);
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
