#include "persia/dense_layer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

using namespace persia;

bool close(double got, double expected) {
    return std::fabs(got - expected) < 2e-5 * (1 + std::fabs(expected));
}

ThreadTeam team(1);

// A layer that passes the interaction on, both ways against the definition, in doubles; nothing may be
// written outside the results.
void check(const InteractionShape& shape, bool apart, std::mt19937& random) {
    const size_t B = shape.num_samples, V = shape.num_vectors, D = shape.dim, W = shape.width();
    std::normal_distribution<float> normal;
    std::vector<float> all(B * V * D + 1), gradient(B * W + 1);
    for (float& x : all) x = normal(random);
    for (float& x : gradient) x = normal(random);
    std::vector<float> first, rest;
    for (size_t i = 0; i < B * V; ++i) {
        std::vector<float>& to = apart && i % V == 0 ? first : rest;
        to.insert(to.end(), all.begin() + i * D, all.begin() + (i + 1) * D);
    }
    first.push_back(NAN);  // behind the end: must not matter
    rest.push_back(NAN);
    std::vector<float> out(B * W + 1, 7.0f), first_gradient(first.size(), 7.0f),
        rest_gradient(rest.size(), 7.0f), weight(W * W + 1), bias(W + 1), weight_gradient(W * W + 1, 7.0f),
        bias_gradient(W + 1, 7.0f);
    for (size_t k = 0; k < W; ++k) weight[k * W + k] = 1;
    weight.back() = bias.back() = NAN;
    const Span<float> weights(weight.data(), W * W), biases(bias.data(), W);
    using Floats = Span<float>;
    const DenseLayer layer{B, W, W, false, weights, biases};
    const DenseInputs inputs{true, {}, shape, {apart ? Floats(first) : Floats(), rest}};
    dense_forward(layer, inputs, out, team);
    dense_backward(layer, inputs, Span<const float>(out.data(), B * W),
                   Span<const float>(gradient.data(), B * W),
                   {{},
                    {apart ? Floats(first_gradient) : Floats(), rest_gradient},
                    Floats(weight_gradient.data(), W * W),
                    Floats(bias_gradient.data(), W)},
                   team);
    CHECK(weight_gradient.back() == 7 && bias_gradient.back() == 7);
    CHECK(out.back() == 7 && first_gradient.back() == 7 && rest_gradient.back() == 7);
    for (size_t b = 0; b < B; ++b) {
        const float* const x = all.data() + b * V * D;
        std::vector<double> expected(V * D, 0.0);
        for (size_t e = 0; e < shape.num_copied * D; ++e) {
            CHECK(out[b * W + e] == x[e]);  // times one, and zeros
            expected[e] = gradient[b * W + e];
        }
        size_t at = b * W + shape.num_copied * D;
        for (size_t i = 0; i < V; ++i) {
            for (size_t j = 0; j < i; ++j, ++at) {
                double product = 0;
                for (size_t d = 0; d < D; ++d) {
                    product += static_cast<double>(x[i * D + d]) * x[j * D + d];
                    expected[i * D + d] += static_cast<double>(gradient[at]) * x[j * D + d];
                    expected[j * D + d] += static_cast<double>(gradient[at]) * x[i * D + d];
                }
                CHECK(close(out[at], product));
            }
        }
        CHECK(at == (b + 1) * W);
        for (size_t e = 0; e < V * D; ++e) {
            const size_t in_rest = V - apart;
            const float got = apart && e < D ? first_gradient[b * D + e]
                                             : rest_gradient[b * in_rest * D + e - (apart ? D : 0)];
            CHECK(close(got, expected[e]));
        }
    }
}

// A layer on values, with a ReLU, against the definition in doubles, by several threads.
void check_values(size_t B, size_t K, size_t N, unsigned threads, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> values(B * K), weight(N * K), bias(N), gradient(B * N);
    for (std::vector<float>* array : {&values, &weight, &bias, &gradient})
        for (float& x : *array) x = normal(random);
    std::vector<float> out(B * N + 1, 7.0f), to_values(B * K + 1, 7.0f), to_weight(N * K + 1, 7.0f),
        to_bias(N + 1, 7.0f);
    const auto view = [](std::vector<float>& array) { return Span<float>(array.data(), array.size() - 1); };
    ThreadTeam several(threads);
    const DenseLayer layer{B, K, N, true, weight, bias};
    const DenseInputs inputs{false, values, {}, {}};
    dense_forward(layer, inputs, view(out), several);
    dense_backward(layer, inputs, Span<const float>(out.data(), B * N), gradient,
                   {view(to_values), {}, view(to_weight), view(to_bias)}, several);
    CHECK(out.back() == 7 && to_values.back() == 7 && to_weight.back() == 7 && to_bias.back() == 7);
    std::vector<double> values_expected(B * K), weight_expected(N * K), bias_expected(N);
    for (size_t b = 0; b < B; ++b) {
        for (size_t n = 0; n < N; ++n) {
            double sum = bias[n];
            for (size_t k = 0; k < K; ++k) sum += static_cast<double>(values[b * K + k]) * weight[n * K + k];
            CHECK(close(out[b * N + n], std::max(sum, 0.0)));
            if (out[b * N + n] <= 0) continue;
            const double slope = gradient[b * N + n];
            bias_expected[n] += slope;
            for (size_t k = 0; k < K; ++k) {
                values_expected[b * K + k] += slope * weight[n * K + k];
                weight_expected[n * K + k] += slope * values[b * K + k];
            }
        }
    }
    for (size_t i = 0; i < B * K; ++i) CHECK(close(to_values[i], values_expected[i]));
    for (size_t i = 0; i < N * K; ++i) CHECK(std::fabs(to_weight[i] - weight_expected[i]) < 1e-3);
    for (size_t i = 0; i < N; ++i) CHECK(std::fabs(to_bias[i] - bias_expected[i]) < 1e-3);
}

int main() {
    std::mt19937 random(1);
    for (const size_t samples : {0, 1, 63, 65, 512, 1100})
        for (const size_t inputs : {1, 7, 8, 13, 64})
            for (const size_t outputs : {1, 5, 16, 33})
                for (const unsigned threads : {1, 3}) check_values(samples, inputs, outputs, threads, random);
    for (const size_t vectors : {1, 2, 3, 4, 7, 8, 9, 12, 16, 17, 27, 33}) {
        for (const size_t dim : {1, 2, 7, 8, 9, 16, 17, 24, 64}) {
            for (const bool apart : {false, true}) {
                check({3, vectors, dim, 1}, apart, random);
                check({2, vectors, dim, vectors}, apart, random);
            }
        }
    }
    for (const size_t samples : {0, 1}) check({samples, 5, 4, 0}, true, random);
    check({2, 0, 4, 0}, false, random);
}
