#include "persia/interaction.h"

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

// Both directions against the definition, in doubles; nothing may be written outside the results.
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
        rest_gradient(rest.size(), 7.0f);
    using Floats = Span<float>;
    const InteractionVectors<const float> vectors{apart ? Floats(first) : Floats(), rest};
    interaction_forward(shape, vectors, out);
    interaction_backward(shape, vectors, gradient,
                         {apart ? Floats(first_gradient) : Floats(), rest_gradient});
    CHECK(out.back() == 7 && first_gradient.back() == 7 && rest_gradient.back() == 7);
    for (size_t b = 0; b < B; ++b) {
        const float* const x = all.data() + b * V * D;
        std::vector<double> expected(V * D, 0.0);
        for (size_t e = 0; e < shape.num_copied * D; ++e) {
            CHECK(out[b * W + e] == x[e]);
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

int main() {
    std::mt19937 random(1);
    for (const size_t vectors : {1, 2, 3, 4, 7, 8, 9, 12, 16, 17, 27, 33, 65}) {
        for (const size_t dim : {1, 2, 7, 8, 9, 16, 17, 24, 64, 100}) {
            for (const bool apart : {false, true}) {
                check({3, vectors, dim, 1}, apart, random);
                check({2, vectors, dim, vectors}, apart, random);
            }
        }
    }
    for (const size_t samples : {0, 1}) check({samples, 5, 4, 0}, true, random);
    check({2, 0, 4, 0}, false, random);
}
