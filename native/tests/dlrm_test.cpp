#include "persia/dlrm.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "persia/wide.h"

using namespace persia;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

bool close(double got, double expected, double scale, double tolerance = 3e-5) {
    return std::fabs(got - expected) < tolerance * (scale + std::fabs(expected));
}

// To the nearest bf16, ties to even.
double narrow(double x) {
    const auto value = static_cast<float>(x);
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    float rounded;
    std::memcpy(&rounded, &bits, sizeof bits);
    return static_cast<double>(rounded);
}

// Room for results, with a float behind the end that must stay as it is.
struct Result {
    explicit Result(size_t size) : values(size + 1, 7.0f) {}
    Span<float> span() { return {values.data(), values.size() - 1}; }
    // rounded: what a layer makes may lie so near the middle of two bf16 that the next one gets the other of
    // them: that is a 256th of a single term, and seldom.
    void check(const Doubles& expected, double scale, bool rounded) const {
        CHECK(values.size() == expected.size() + 1 && values.back() == 7);
        size_t far = 0;
        for (size_t i = 0; i < expected.size(); ++i) {
            CHECK(close(values[i], expected[i], scale, rounded ? 4e-3 : 3e-5));
            far += !close(values[i], expected[i], scale);
        }
        CHECK(far <= expected.size() / 50);
    }
    Floats values;
};

struct Layer {
    Layer(size_t inputs, size_t outputs, bool bf16, std::mt19937& random)
        : inputs(inputs), outputs(outputs), bf16(bf16), weight(inputs * outputs + 1), bias(outputs + 1) {
        std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(inputs + 1)));
        for (float& x : weight) x = normal(random);
        for (float& x : bias) x = normal(random);
        weight.back() = bias.back() = NAN;  // behind the end: must not matter
    }

    DenseLayer view() const {
        return {inputs, outputs, {weight.data(), inputs * outputs}, {bias.data(), outputs}};
    }

    Doubles forward(const Doubles& x, bool relu) const {
        Doubles out(outputs);
        for (size_t n = 0; n < outputs; ++n) {
            out[n] = bias[n];
            for (size_t k = 0; k < inputs; ++k) out[n] += factor(weight[n * inputs + k]) * factor(x[k]);
            if (relu) out[n] = std::max(out[n], 0.0);
        }
        return out;
    }

    // Adds to the parameters' gradients and returns that of x.
    Doubles backward(const Doubles& x, const Doubles& out, Doubles gradient, bool relu) {
        Doubles to(inputs);
        weight_gradient.resize(inputs * outputs);
        bias_gradient.resize(outputs);
        for (size_t n = 0; n < outputs; ++n) {
            if (relu && out[n] <= 0) continue;
            const double slope = factor(gradient[n]);
            bias_gradient[n] += slope;
            for (size_t k = 0; k < inputs; ++k) {
                weight_gradient[n * inputs + k] += slope * factor(x[k]);
                to[k] += slope * factor(weight[n * inputs + k]);
            }
        }
        return to;
    }

    double factor(double x) const { return bf16 ? narrow(x) : x; }

    size_t inputs, outputs;
    bool bf16;
    Floats weight, bias;
    Doubles weight_gradient, bias_gradient;
};

Doubles interact(const InteractionShape& shape, const Doubles& x) {
    Doubles out(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(shape.num_copied * shape.dim));
    for (size_t i = 0; i < shape.num_vectors; ++i) {
        for (size_t j = 0; j < i; ++j) {
            out.push_back(0);
            for (size_t d = 0; d < shape.dim; ++d) out.back() += x[i * shape.dim + d] * x[j * shape.dim + d];
        }
    }
    return out;
}

Doubles interact_backward(const InteractionShape& shape, const Doubles& x, const Doubles& gradient) {
    const size_t dim = shape.dim;
    size_t at = shape.num_copied * dim;
    Doubles to(gradient.begin(), gradient.begin() + static_cast<std::ptrdiff_t>(at));
    to.resize(shape.num_vectors * dim);
    for (size_t i = 0; i < shape.num_vectors; ++i) {
        for (size_t j = 0; j < i; ++j, ++at) {
            for (size_t d = 0; d < dim; ++d) {
                to[i * dim + d] += gradient[at] * x[j * dim + d];
                to[j * dim + d] += gradient[at] * x[i * dim + d];
            }
        }
    }
    return to;
}

// Values of all layers of one sample; a ReLU too close to its bend is told by a false `safe`.
std::vector<Doubles> through(const std::vector<Layer>& layers, Doubles x, bool relu_last) {
    std::vector<Doubles> values{x};
    for (size_t l = 0; l < layers.size(); ++l)
        values.push_back(layers[l].forward(values.back(), relu_last || l + 1 < layers.size()));
    return values;
}

// The whole network both ways against the definition, in doubles; nothing may be written outside results.
void check(size_t B, InteractionShape shape, std::vector<size_t> bottom_widths,
           std::vector<size_t> top_widths, unsigned threads, std::mt19937& random, bool bf16) {
    std::normal_distribution<float> normal;
    std::vector<Layer> bottom, top;
    for (size_t l = 0; l + 1 < bottom_widths.size(); ++l)
        bottom.emplace_back(bottom_widths[l], bottom_widths[l + 1], bf16, random);
    top_widths.insert(top_widths.begin(), shape.width());
    for (size_t l = 0; l + 1 < top_widths.size(); ++l)
        top.emplace_back(top_widths[l], top_widths[l + 1], bf16, random);
    const size_t K = bottom.empty() ? 0 : bottom_widths.front(), N = top_widths.back();
    const size_t given = (shape.num_vectors - !bottom.empty()) * shape.dim;
    Floats dense(B * K + 1), vectors(B * given + 1), gradient(B * N);
    for (Floats* array : {&dense, &vectors, &gradient})
        for (float& x : *array) x = normal(random);
    dense.back() = vectors.back() = NAN;

    Dlrm dlrm{};
    dlrm.num_samples = B;
    dlrm.bf16 = bf16;
    dlrm.shape = shape;
    dlrm.dense = {dense.data(), B * K};
    dlrm.vectors = {vectors.data(), B * given};
    Result out(B * N), to_dense(B * K), to_vectors(B * given);
    std::vector<Result> results;
    DlrmGradients to{to_dense.span(), to_vectors.span(), {}, {}};
    results.reserve(2 * (bottom.size() + top.size()));
    for (const bool is_top : {false, true}) {
        for (const Layer& layer : is_top ? top : bottom) {
            (is_top ? dlrm.top : dlrm.bottom).push_back(layer.view());
            results.emplace_back(layer.inputs * layer.outputs);
            results.emplace_back(layer.outputs);
            (is_top ? to.top : to.bottom)
                .push_back({results[results.size() - 2].span(), results.back().span()});
        }
    }
    Result kept(dlrm.kept_size());
    ThreadTeam team(threads);
    dlrm_forward(dlrm, kept.span(), out.span(), team);
    dlrm_backward(dlrm, kept.span(), gradient, to, team);
    CHECK(kept.values.back() == 7);

    Doubles out_expected, dense_expected, vectors_expected;
    for (std::vector<Layer>* layers : {&bottom, &top}) {
        for (Layer& layer : *layers) {
            layer.weight_gradient.resize(layer.inputs * layer.outputs);
            layer.bias_gradient.resize(layer.outputs);
        }
    }
    for (size_t b = 0; b < B; ++b) {
        const auto below = through(bottom, Doubles(&dense[b * K], &dense[b * K] + K), true);
        Doubles x = bottom.empty() ? Doubles() : below.back();
        x.insert(x.end(), &vectors[b * given], &vectors[b * given] + given);
        const auto above = through(top, interact(shape, x), false);
        out_expected.insert(out_expected.end(), above.back().begin(), above.back().end());
        Doubles slope(&gradient[b * N], &gradient[b * N] + N);
        for (size_t l = top.size(); l-- > 0;)
            slope = top[l].backward(above[l], above[l + 1], slope, l + 1 < top.size());
        slope = interact_backward(shape, x, slope);
        const auto own = slope.end() - static_cast<std::ptrdiff_t>(given);
        vectors_expected.insert(vectors_expected.end(), own, slope.end());
        slope.resize(slope.size() - given);
        for (size_t l = bottom.size(); l-- > 0;)
            slope = bottom[l].backward(below[l], below[l + 1], slope, true);
        if (!bottom.empty()) dense_expected.insert(dense_expected.end(), slope.begin(), slope.end());
    }
    const double many = 3 * std::sqrt(static_cast<double>(B + 1));
    out.check(out_expected, 3, bf16);
    to_vectors.check(vectors_expected, 10, bf16);
    to_dense.check(dense_expected, 10, bf16);
    size_t at = 0;
    for (const std::vector<Layer>* layers : {&bottom, &top}) {
        for (const Layer& layer : *layers) {
            results[at++].check(layer.weight_gradient, 10 * many, bf16);
            results[at++].check(layer.bias_gradient, 10 * many, bf16);
        }
    }

    // Without places for the inputs' gradients the others are the same.
    std::vector<Floats> before;
    for (Result& result : results) {
        before.push_back(result.values);
        std::fill(result.values.begin(), result.values.end() - 1, -1.0f);
    }
    to.dense = to.vectors = {};
    dlrm_backward(dlrm, kept.span(), gradient, to, team);
    for (size_t i = 0; i < results.size(); ++i) CHECK(results[i].values == before[i]);
}

void check_all(bool bf16) {
    std::mt19937 random(1);
    for (const size_t samples : {0, 1, 15, 16, 17, 63, 65, 512, 1100})
        for (const unsigned threads : {1, 3}) {
            check(samples, {5, 4, 1}, {13, 7, 4}, {33, 5, 2}, threads, random, bf16);
            check(samples, {3, 3, 3}, {}, {16, 1}, threads, random, bf16);
            check(samples, {1, 19, 1}, {}, {21}, threads, random, bf16);  // a layer of what was given
        }
    for (const size_t width : {1, 2, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 48})
        check(20, {4, 8, 1}, {width, width, 8}, {width, width, width}, 1, random, bf16);
    for (const size_t vectors : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 27, 33}) {
        for (const size_t dim : {1, 2, 4, 7, 8, 9, 16, 17}) {
            check(18, {vectors, dim, 1}, {2, dim}, {3, 1}, 1, random, bf16);
            check(17, {vectors, dim, vectors}, {}, {3, 1}, 1, random, bf16);
        }
    }
    check(19, {5, 4, 0}, {3, 4}, {6, 1}, 2, random, bf16);
    check(19, {0, 4, 0}, {}, {6, 1}, 1, random, bf16);
}

int main() {
    check_all(false);
    if (has_bf16()) check_all(true);
}
