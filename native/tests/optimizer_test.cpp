#include "persia/optimizer.h"

#include <random>
#include <stdexcept>

#include "check.h"

using namespace persia;

// 20 updates against the formula in double, for dims with and without a rest after whole vectors. What lies
// behind a row must stay as it is.
template <class Reference>
void equals_formula(const std::string& name, OptimizerOptions options, std::size_t state_per_dim,
                    Reference&& reference) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (std::uint32_t dim = 1; dim <= 35; ++dim) {
        Optimizer optimizer = make_optimizer(name, options).optimizer;
        const std::uint32_t words = state_words(optimizer, dim);
        std::vector<float> row(dim + words + 1);
        for (std::uint32_t d = 0; d < dim; ++d) row[d] = normal(random);
        row.back() = 42;
        std::visit([&](const auto& kind) { kind.init(row.data() + dim, dim); }, optimizer);
        std::vector<double> w(row.begin(), row.begin() + dim), s(state_per_dim * dim + 1, 0.0);
        std::vector<float> g(dim);
        for (int t = 1; t <= 20; ++t) {
            for (float& value : g) value = normal(random);
            reference(w, s, g, t);
            std::visit([&](auto& kind) { kind.apply(row.data(), row.data() + dim, g.data(), dim); },
                       optimizer);
        }
        for (std::uint32_t d = 0; d < dim; ++d) CHECK(std::fabs(row[d] - w[d]) < 1e-5);
        CHECK(row.back() == 42);
    }
}

using Values = std::vector<double>;
using Gradient = std::vector<float>;

void updates_equal_their_formulas() {
    equals_formula("sgd", {{"lr", 0.1}}, 0, [](Values& w, Values&, const Gradient& g, int) {
        for (std::size_t d = 0; d < w.size(); ++d) w[d] -= 0.1 * g[d];
    });
    equals_formula("adagrad", {{"lr", 0.1}, {"eps", 1e-3}}, 1,
                   [](Values& w, Values& s, const Gradient& g, int) {
                       for (std::size_t d = 0; d < w.size(); ++d) {
                           s[d] += double{g[d]} * g[d];
                           w[d] -= 0.1 * g[d] / (std::sqrt(s[d]) + 1e-3);
                       }
                   });
    equals_formula("rowwise_adagrad", {{"lr", 0.1}}, 0, [](Values& w, Values& s, const Gradient& g, int) {
        for (const float value : g) s[0] += double{value} * value / static_cast<double>(g.size());
        for (std::size_t d = 0; d < w.size(); ++d) w[d] -= 0.1 * g[d] / (std::sqrt(s[0]) + 1e-8);
    });
    equals_formula("momentum", {{"lr", 0.1}, {"momentum", 0.7}}, 1,
                   [](Values& w, Values& s, const Gradient& g, int) {
                       for (std::size_t d = 0; d < w.size(); ++d) {
                           s[d] = 0.7 * s[d] + g[d];
                           w[d] -= 0.1 * s[d];
                       }
                   });
    // FTRL-Proximal as in McMahan et al., where sigma_s sums to sqrt(n) / lr: here in closed form per step.
    for (const double l1 : {0.0, 0.5}) {
        equals_formula(
            "ftrl", {{"lr", 0.1}, {"l1", l1}, {"l2", 0.2}, {"initial_accumulator_value", 0.5}}, 2,
            [l1](Values& w, Values& s, const Gradient& g, int t) {
                const std::size_t dim = w.size();
                for (std::size_t d = 0; d < dim; ++d) {
                    if (t == 1) s[d] = 0.5;
                    const double sigma = (std::sqrt(s[d] + double{g[d]} * g[d]) - std::sqrt(s[d])) / 0.1;
                    s[d] += double{g[d]} * g[d];
                    s[dim + d] += g[d] - sigma * w[d];
                    const double z = s[dim + d];
                    w[d] = std::fabs(z) <= l1 ? 0 : -(z - (z > 0 ? l1 : -l1)) / (std::sqrt(s[d]) / 0.1 + 0.4);
                }
            });
    }
    equals_formula("adamw", {{"lr", 0.01}, {"weight_decay", 0.1}}, 2,
                   [](Values& w, Values& s, const Gradient& g, int t) {
                       for (std::size_t d = 0; d < w.size(); ++d) {
                           double& m = s[d];
                           double& v = s[w.size() + d];
                           w[d] *= 1 - 0.01 * 0.1;
                           m = 0.9 * m + 0.1 * g[d];
                           v = 0.999 * v + 0.001 * g[d] * g[d];
                           const double corrected = v / (1 - std::pow(0.999, t));
                           w[d] -= 0.01 / (1 - std::pow(0.9, t)) * m / (std::sqrt(corrected) + 1e-8);
                       }
                   });
    for (const double beta1 : {0.9, 0.3}) {  // on both sides of 1/2, where lerp changes its formula
        equals_formula("adam", {{"lr", 0.01}, {"beta1", beta1}}, 2,
                       [beta1](Values& w, Values& s, const Gradient& g, int t) {
                           for (std::size_t d = 0; d < w.size(); ++d) {
                               double& m = s[d];
                               double& v = s[w.size() + d];
                               m = beta1 * m + (1 - beta1) * g[d];
                               v = 0.999 * v + 0.001 * g[d] * g[d];
                               const double corrected = v / (1 - std::pow(0.999, t));
                               w[d] -= 0.01 / (1 - std::pow(beta1, t)) * m / (std::sqrt(corrected) + 1e-8);
                           }
                       });
    }
}

// The count of updates goes on past the cached corrections, and stops rather than starting over.
void adam_counts_to_the_end() {
    Optimizer optimizer = make_optimizer("adam", {{"lr", 0.1}}).optimizer;
    for (const std::uint32_t count : {0u, 65535u, 65536u, 1u << 20, UINT32_MAX - 1, UINT32_MAX}) {
        float row[4] = {1, 0, 0, 0};
        std::memcpy(row + 3, &count, sizeof count);
        const float g = 1;
        std::visit([&](auto& kind) { kind.apply(row, row + 1, &g, 1); }, optimizer);
        std::uint32_t after;
        std::memcpy(&after, row + 3, sizeof after);
        CHECK(after == (count == UINT32_MAX ? UINT32_MAX : count + 1));
        const double first = 1 - std::pow(0.9, after);
        const double second = 1 - std::pow(0.999, after);
        const double expected = 1 - 0.1 / first * 0.1 / (std::sqrt(0.001 / second) + 1e-8);
        CHECK(std::fabs(row[0] - expected) < 1e-5);
    }
}

void widths_are_as_documented() {
    CHECK(state_words(make_optimizer("sgd", {{"lr", 1}}).optimizer, 16) == 0);
    CHECK(state_words(make_optimizer("adagrad", {{"lr", 1}}).optimizer, 16) == 16);
    CHECK(state_words(make_optimizer("momentum", {{"lr", 1}}).optimizer, 16) == 16);
    CHECK(state_words(make_optimizer("ftrl", {{"lr", 1}}).optimizer, 16) == 32);
    CHECK(state_words(make_optimizer("rowwise_adagrad", {{"lr", 1}}).optimizer, 16) == 1);
    CHECK(state_words(make_optimizer("adam", {{"lr", 1}}).optimizer, 16) == 33);
    CHECK(state_width(make_optimizer("adam", {{"lr", 1}}).optimizer, 16) == 32);
}

int main() {
    updates_equal_their_formulas();
    adam_counts_to_the_end();
    widths_are_as_documented();
}
