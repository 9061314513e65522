#include "persia/dense_layer.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "interacting.h"
#include "multiply.h"
#include "persia/aligned_array.h"

namespace persia {
namespace {

// Samples that are computed at a time: their inputs and the gradients of these are to fit the core's cache
// beside the weights. And those over which gradients of parameters are summed.
constexpr std::size_t kBlock = 64, kPart = 512;

std::size_t whole(std::size_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

AlignedArray<float> zeros(std::size_t n) {
    AlignedArray<float> array(n);
    std::fill(array.data(), array.data() + n, 0.0f);
    return array;
}

// The layer's weights with rows of whole vectors.
struct Weights {
    explicit Weights(const DenseLayer& layer)
        : inputs(whole(layer.num_inputs)), outputs(whole(layer.num_outputs)) {}

    void transpose(const DenseLayer& layer) {
        columns = zeros(layer.num_inputs * outputs + outputs);
        bias = columns.data() + layer.num_inputs * outputs;
        for (std::size_t n = 0; n < layer.num_outputs; ++n) {
            bias[n] = layer.bias[n];
            for (std::size_t k = 0; k < layer.num_inputs; ++k)
                columns[k * outputs + n] = layer.weight[n * layer.num_inputs + k];
        }
    }

    void pad(const DenseLayer& layer) {
        rows = zeros(layer.num_outputs * inputs);
        for (std::size_t n = 0; n < layer.num_outputs; ++n)
            std::memcpy(&rows[n * inputs], &layer.weight[n * layer.num_inputs],
                        layer.num_inputs * sizeof(float));
    }

    std::size_t inputs, outputs;  // K and N as whole vectors
    AlignedArray<float> columns;  // [K, outputs]
    float* bias = nullptr;        // [outputs]
    AlignedArray<float> rows;     // [N, inputs]
};

// Gives the layer's inputs of a block, as rows of whole vectors.
class Reader {
  public:
    Reader(const DenseInputs& inputs, std::size_t width)
        : inputs_(inputs), width_(width), stride_(whole(width)), copied_(zeros(kBlock * stride_)) {
        if (inputs.interacts) interacting_.emplace(inputs.shape);
    }

    const float* read(std::size_t begin, std::size_t count) {
        if (!interacting_ && stride_ == width_) return &inputs_.values[begin * width_];
        for (std::size_t i = 0; i < count; ++i) {
            float* const to = &copied_[i * stride_];
            if (interacting_)
                interacting_->forward(inputs_.vectors, begin + i, to);
            else
                std::memcpy(to, &inputs_.values[(begin + i) * width_], width_ * sizeof(float));
        }
        return copied_.data();
    }

    // From the gradients of a block, rows like those that were read.
    void write_gradient(std::size_t begin, std::size_t count, const float* gradient,
                        const DenseGradients& to) {
        for (std::size_t i = 0; i < count; ++i, gradient += stride_) {
            if (interacting_)
                interacting_->backward(inputs_.vectors, begin + i, gradient, to.vectors);
            else
                std::memcpy(&to.values[(begin + i) * width_], gradient, width_ * sizeof(float));
        }
    }

  private:
    const DenseInputs& inputs_;
    std::size_t width_, stride_;
    AlignedArray<float> copied_;
    std::optional<Interacting> interacting_;
};

// use(part, begin, end) for each part of the samples, by the threads of the team.
template <typename MakeUse>
void for_parts(std::size_t num_samples, ThreadTeam& team, const MakeUse& make_use) {
    const std::size_t parts = (num_samples + kPart - 1) / kPart;
    const auto work = [&](unsigned thread) {
        const std::size_t first = parts * thread / team.size(), last = parts * (thread + 1) / team.size();
        if (first == last) return;
        auto use = make_use();
        for (std::size_t part = first; part < last; ++part)
            use(part, part * kPart, std::min(num_samples, (part + 1) * kPart));
    };
    if (team.size() == 1 || parts == 1)
        for (unsigned thread = 0; thread < team.size(); ++thread) work(thread);
    else
        team.run(work);
}

void forward_block(const DenseLayer& layer, const Weights& weights, const float* inputs, std::size_t count,
                   float* block, float* out) {
    const std::size_t width = layer.num_outputs, stride = weights.outputs;
    float* const sums = stride == width ? out : block;
    for (std::size_t i = 0; i < count; ++i)
        std::memcpy(sums + i * stride, weights.bias, stride * sizeof(float));
    multiply_add({inputs, weights.inputs, 1}, count, layer.num_inputs, weights.columns.data(), stride, stride,
                 sums, stride);
    if (layer.relu)
        for (std::size_t i = 0; i < count * stride; ++i) sums[i] = sums[i] < 0 ? 0 : sums[i];  // NaN stays
    if (sums == out) return;
    for (std::size_t i = 0; i < count; ++i)
        std::memcpy(out + i * width, sums + i * stride, width * sizeof(float));
}

}  // namespace

void dense_forward(const DenseLayer& layer, const DenseInputs& inputs, Span<float> out, ThreadTeam& team) {
    Weights weights(layer);
    weights.transpose(layer);
    for_parts(layer.num_samples, team, [&] {
        return [&, reader = Reader(inputs, layer.num_inputs),
                block = AlignedArray<float>(kBlock * weights.outputs)](std::size_t, std::size_t begin,
                                                                       std::size_t end) mutable {
            for (; begin < end; begin += kBlock) {
                const std::size_t count = std::min(kBlock, end - begin);
                forward_block(layer, weights, reader.read(begin, count), count, block.data(),
                              out.data() + begin * layer.num_outputs);
            }
        };
    });
}

void dense_backward(const DenseLayer& layer, const DenseInputs& inputs, Span<const float> out,
                    Span<const float> gradient, const DenseGradients& to, ThreadTeam& team) {
    Weights weights(layer);
    const std::size_t num_inputs = layer.num_inputs, num_outputs = layer.num_outputs;
    const std::size_t stride = weights.outputs, size = num_outputs * weights.inputs;
    const bool wanted = !to.values.empty() || !to.vectors.first.empty() || !to.vectors.rest.empty();
    if (wanted) weights.pad(layer);
    const std::size_t parts = (layer.num_samples + kPart - 1) / kPart;
    AlignedArray<float> sums = zeros(parts * (size + stride));  // of parameters, by parts
    for_parts(layer.num_samples, team, [&] {
        return [&, reader = Reader(inputs, num_inputs), slopes = zeros(kBlock * stride),
                inputs_gradient = AlignedArray<float>(wanted ? kBlock * weights.inputs : 0)](
                   std::size_t part, std::size_t begin, std::size_t end) mutable {
            float* const weight_sums = &sums[part * (size + stride)];
            float* const bias_sums = weight_sums + size;
            for (; begin < end; begin += kBlock) {
                const std::size_t count = std::min(kBlock, end - begin);
                for (std::size_t i = 0; i < count; ++i) {
                    const float* const from = &gradient[(begin + i) * num_outputs];
                    const float* const made = &out[(begin + i) * num_outputs];
                    float* const slope = &slopes[i * stride];
                    for (std::size_t n = 0; n < num_outputs; ++n)
                        slope[n] = layer.relu && made[n] <= 0 ? 0 : from[n];
                    for (std::size_t n = 0; n < num_outputs; ++n) bias_sums[n] += slope[n];
                }
                const float* const read = reader.read(begin, count);
                multiply_add({slopes.data(), 1, stride}, num_outputs, count, read, weights.inputs,
                             weights.inputs, weight_sums, weights.inputs);
                if (!wanted) continue;
                std::fill_n(inputs_gradient.data(), count * weights.inputs, 0.0f);
                multiply_add({slopes.data(), stride, 1}, count, num_outputs, weights.rows.data(),
                             weights.inputs, weights.inputs, inputs_gradient.data(), weights.inputs);
                reader.write_gradient(begin, count, inputs_gradient.data(), to);
            }
        };
    });
    std::fill(to.weight.begin(), to.weight.end(), 0.0f);
    std::fill(to.bias.begin(), to.bias.end(), 0.0f);
    for (std::size_t part = 0; part < parts; ++part) {
        const float* const weight_sums = &sums[part * (size + stride)];
        for (std::size_t n = 0; n < num_outputs; ++n)
            add(&to.weight[n * num_inputs], weight_sums + n * weights.inputs, num_inputs);
        add(to.bias.data(), weight_sums + size, num_outputs);
    }
}

}  // namespace persia
