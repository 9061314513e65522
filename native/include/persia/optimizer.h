// Optimizers of embedding rows. Each is equal, up to rounding in the last bits, to a stated reference that
// sees only the steps at which the row is touched:
//   sgd, momentum, adagrad, adam, adamw   torch.optim.SGD (momentum: with it, no dampening), Adagrad, Adam,
//                    AdamW (single-tensor, default arguments otherwise)
//   rowwise_adagrad  FBGEMM's EXACT_ROWWISE_ADAGRAD: one accumulator per row, of the mean squared gradient
//   ftrl             TensorFlow's ApplyFtrl with lr_power -0.5 (McMahan et al., KDD 2013); lr 0 changes
//                    nothing, where the formula divides by it
//
// An optimizer has
//   state_width(dim)     floats of state per row
//   has_steps            whether a row's count of updates (uint32) lies behind these
//   init(s, dim)         the state of a new row
//   apply(w, s, g, dim)  one update of weights w and state s with gradient g
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "persia/lanes.h"

namespace persia {

using OptimizerOptions = std::map<std::string, double>;

struct Sgd {
    static constexpr bool has_steps = false;
    double lr = 0;

    static std::uint32_t state_width(std::uint32_t) { return 0; }
    void init(float*, std::uint32_t) const {}
    void apply(float* __restrict w, float*, const float* __restrict g, std::uint32_t dim) {
        const auto rate = static_cast<float>(lr);
        for (std::uint32_t d = 0; d < dim; ++d) w[d] -= rate * g[d];
    }
};

struct Momentum {
    static constexpr bool has_steps = false;
    double lr = 0;
    float momentum = 0.9f;

    static std::uint32_t state_width(std::uint32_t dim) { return dim; }
    void init(float* s, std::uint32_t dim) const { std::memset(s, 0, dim * sizeof(float)); }
    void apply(float* __restrict w, float* __restrict s, const float* __restrict g, std::uint32_t dim) {
        const auto rate = static_cast<float>(lr);
        for (std::uint32_t d = 0; d < dim; ++d) {
            s[d] = momentum * s[d] + g[d];
            w[d] -= rate * s[d];
        }
    }
};

struct Adagrad {
    static constexpr bool has_steps = false;
    double lr = 0;
    float eps = 1e-10f;
    float initial = 0;

    static std::uint32_t state_width(std::uint32_t dim) { return dim; }
    void init(float* s, std::uint32_t dim) const {
        for (std::uint32_t d = 0; d < dim; ++d) s[d] = initial;
    }
    void apply(float* __restrict w, float* __restrict s, const float* __restrict g, std::uint32_t dim) {
        const auto rate = static_cast<float>(lr);
        for (std::uint32_t d = 0; d < dim; ++d) {
            s[d] += g[d] * g[d];
            w[d] -= rate * g[d] / (std::sqrt(s[d]) + eps);
        }
    }
};

struct RowwiseAdagrad {
    static constexpr bool has_steps = false;
    double lr = 0;
    float eps = 1e-8f;
    float initial = 0;

    static std::uint32_t state_width(std::uint32_t) { return 1; }
    void init(float* s, std::uint32_t) const { *s = initial; }
    void apply(float* __restrict w, float* __restrict s, const float* __restrict g, std::uint32_t dim) {
        *s += sum_of_squares(g, dim) / static_cast<float>(dim);
        const float rate = static_cast<float>(lr) / (std::sqrt(*s) + eps);
        for (std::uint32_t d = 0; d < dim; ++d) w[d] -= rate * g[d];
    }

  private:
    // In 8 partial sums: the compiler may not reorder a plain sum, so it would not vectorise it.
    static float sum_of_squares(const float* g, std::uint32_t dim) {
        Lanes parts = {};
        std::uint32_t d = 0;
        for (; d + kLanes <= dim; d += kLanes) {
            const Lanes x = load(g + d);
            parts += x * x;
        }
        for (std::uint32_t lane = 0; lane < kLanes && d < dim; ++d, ++lane) parts[lane] += g[d] * g[d];
        return sum(parts);
    }
};

struct Adam {
    static constexpr bool has_steps = true;
    double lr = 0;
    double decoupled_decay = 0;  // adamw's weight_decay
    double beta1 = 0.9;
    double beta2 = 0.999;
    float eps = 1e-8f;

    static std::uint32_t state_width(std::uint32_t dim) { return 2 * dim; }
    void init(float* s, std::uint32_t dim) const { std::memset(s, 0, (2 * dim + 1) * sizeof(float)); }
    void apply(float* w, float* s, const float* g, std::uint32_t dim);

    std::size_t held_bytes() const { return corrections_.capacity() * sizeof(Correction); }

  private:
    struct Correction {
        double first;       // 1 - beta1^t
        float sqrt_second;  // sqrt(1 - beta2^t)
    };
    Correction correction(std::uint32_t t);

    std::vector<Correction> corrections_;  // of t = 1, 2, ...: two pow() per row would cost more than the row
};

struct Ftrl {
    static constexpr bool has_steps = false;
    double lr = 0;
    float initial = 0.1f;
    float l1 = 0;
    float l2 = 0;

    static std::uint32_t state_width(std::uint32_t dim) { return 2 * dim; }  // accumulator, linear
    void init(float* s, std::uint32_t dim) const {
        for (std::uint32_t d = 0; d < dim; ++d) {
            s[d] = initial;
            s[dim + d] = 0;
        }
    }
    void apply(float* __restrict w, float* __restrict s, const float* __restrict g, std::uint32_t dim) {
        if (lr == 0) return;
        const auto rate = static_cast<float>(lr);
        float* __restrict linear = s + dim;
        for (std::uint32_t d = 0; d < dim; ++d) {
            const float accumulator = s[d] + g[d] * g[d];
            const float root = std::sqrt(accumulator);
            linear[d] += g[d] - (root - std::sqrt(s[d])) / rate * w[d];
            s[d] = accumulator;
            const float shrunk = std::copysign(l1, linear[d]) - linear[d];
            w[d] = std::fabs(linear[d]) > l1 ? shrunk / (root / rate + 2 * l2) : 0.0f;
        }
    }
};

using Optimizer = std::variant<Sgd, Momentum, Adagrad, RowwiseAdagrad, Adam, Ftrl>;

struct OptimizerChoice {
    Optimizer optimizer;
    float weight_decay = 0;  // added to the gradient as weight_decay * w, as torch and FBGEMM (L2) do
};

// name: one of those above. Options: lr (must be given); eps (1e-10 for adagrad, else 1e-8);
// initial_accumulator_value (0 for the adagrads, 0.1 for ftrl); beta1, beta2 (0.9, 0.999); momentum (0.9);
// l1, l2 (0; ftrl); weight_decay (0, all but ftrl; adamw: 0.01 and decoupled). Throws std::invalid_argument
// that names an unknown optimizer or option, or a value out of range.
OptimizerChoice make_optimizer(const std::string& name, const OptimizerOptions& options);

// Throws std::invalid_argument unless lr is finite and not negative.
void set_learning_rate(Optimizer& optimizer, double lr);

// Floats of state per row, and 32-bit words including the count of updates.
std::uint32_t state_width(const Optimizer& optimizer, std::uint32_t dim);
std::uint32_t state_words(const Optimizer& optimizer, std::uint32_t dim);
bool has_steps(const Optimizer& optimizer);

}  // namespace persia
