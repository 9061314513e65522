#include "persia/optimizer.h"

#include <stdexcept>

namespace persia {
namespace {

// Takes options by name; what is left at the end is unknown.
class OptionReader {
  public:
    OptionReader(const std::string& optimizer, const OptimizerOptions& options)
        : optimizer_(optimizer), left_(options) {}

    double take(const char* name, double fallback) {
        valid_ += (valid_.empty() ? "" : ", ") + std::string(name);
        const auto found = left_.find(name);
        if (found == left_.end()) return fallback;
        const double value = found->second;
        left_.erase(found);
        if (!std::isfinite(value) || value < 0) refuse(name, value, "a finite number, 0 or more");
        return value;
    }
    double take_required(const char* name) {
        if (left_.count(name) == 0) {
            throw std::invalid_argument("optimizer '" + optimizer_ + "' needs the option '" + name + "'");
        }
        return take(name, 0);
    }
    // 0 would turn a row's zero gradients into 0 / 0.
    float take_eps(double fallback) {
        const double value = take("eps", fallback);
        if (!(static_cast<float>(value) > 0)) refuse("eps", value, "more than 0 in single precision");
        return static_cast<float>(value);
    }
    double take_beta(const char* name, double fallback) {
        const double value = take(name, fallback);
        if (value >= 1) refuse(name, value, "less than 1");
        return value;
    }
    void finish() const {
        if (left_.empty()) return;
        throw std::invalid_argument("optimizer '" + optimizer_ + "' has no option '" + left_.begin()->first +
                                    "'; its options are " + valid_);
    }

  private:
    [[noreturn]] void refuse(const char* name, double value, const char* expected) const {
        throw std::invalid_argument("optimizer '" + optimizer_ + "': option '" + name + "' is " +
                                    std::to_string(value) + ", expected " + expected);
    }

    std::string optimizer_;
    OptimizerOptions left_;
    std::string valid_;
};

constexpr std::size_t kMaxCorrections = 1 << 16;

}  // namespace

Adam::Correction Adam::correction(std::uint32_t t) {
    if (t <= corrections_.size()) return corrections_[t - 1];
    const auto compute = [this](std::uint32_t count) {
        const double second = 1 - std::pow(beta2, static_cast<double>(count));
        return Correction{1 - std::pow(beta1, static_cast<double>(count)),
                          static_cast<float>(std::sqrt(second))};
    };
    if (t > kMaxCorrections) return compute(t);
    while (corrections_.size() < t) {
        corrections_.push_back(compute(static_cast<std::uint32_t>(corrections_.size() + 1)));
    }
    return corrections_[t - 1];
}

void Adam::apply(float* weights, float* state, const float* gradient, std::uint32_t dim) {
    float* __restrict w = weights;
    float* __restrict m = state;
    float* __restrict v = state + dim;
    const float* __restrict g = gradient;

    std::uint32_t t;
    std::memcpy(&t, state + 2 * dim, sizeof t);
    if (t != UINT32_MAX) ++t;
    std::memcpy(state + 2 * dim, &t, sizeof t);

    const Correction by = correction(t);
    const auto minus_step_size = static_cast<float>(-(lr / by.first));
    const auto decay = static_cast<float>(beta2);
    const auto take = static_cast<float>(1 - beta2);
    const auto weight = static_cast<float>(1 - beta1);
    // torch.lerp starts from the nearer end. Both are computed, since a select keeps the loop vectorisable.
    const float rest = 1 - weight;
    const bool from_mean = weight < 0.5f;
    const float sqrt_second = by.sqrt_second;
    const float eps = this->eps;
    if (decoupled_decay != 0) {
        const auto kept = static_cast<float>(1 - lr * decoupled_decay);
        for (std::uint32_t d = 0; d < dim; ++d) w[d] *= kept;
    }
    for (std::uint32_t d = 0; d < dim; ++d) {
        const float difference = g[d] - m[d];
        m[d] = from_mean ? m[d] + weight * difference : g[d] - difference * rest;
        v[d] = v[d] * decay + take * g[d] * g[d];
        w[d] += minus_step_size * m[d] / (std::sqrt(v[d]) / sqrt_second + eps);
    }
}

OptimizerChoice make_optimizer(const std::string& name, const OptimizerOptions& options) {
    OptionReader reader(name, options);
    OptimizerChoice choice;
    const auto finished = [&](auto optimizer) {
        optimizer.lr = reader.take_required("lr");
        if (name != "ftrl" && name != "adamw") {
            choice.weight_decay = static_cast<float>(reader.take("weight_decay", 0));
        }
        reader.finish();
        choice.optimizer = optimizer;
        return choice;
    };
    const auto adagrad = [&](auto optimizer, double eps) {
        optimizer.eps = reader.take_eps(eps);
        optimizer.initial = static_cast<float>(reader.take("initial_accumulator_value", 0));
        return finished(optimizer);
    };
    if (name == "sgd") return finished(Sgd{});
    if (name == "momentum") {
        Momentum momentum;
        momentum.momentum = static_cast<float>(reader.take_beta("momentum", 0.9));
        return finished(momentum);
    }
    if (name == "adagrad") return adagrad(Adagrad{}, 1e-10);
    if (name == "rowwise_adagrad") return adagrad(RowwiseAdagrad{}, 1e-8);
    if (name == "adam" || name == "adamw") {
        Adam adam;
        adam.beta1 = reader.take_beta("beta1", 0.9);
        adam.beta2 = reader.take_beta("beta2", 0.999);
        adam.eps = reader.take_eps(1e-8);
        if (name == "adamw") adam.decoupled_decay = reader.take("weight_decay", 0.01);
        return finished(adam);
    }
    if (name == "ftrl") {
        Ftrl ftrl;
        ftrl.initial = static_cast<float>(reader.take("initial_accumulator_value", 0.1));
        ftrl.l1 = static_cast<float>(reader.take("l1", 0));
        ftrl.l2 = static_cast<float>(reader.take("l2", 0));
        return finished(ftrl);
    }
    throw std::invalid_argument(
        "optimizer: got '" + name +
        "', expected 'sgd', 'momentum', 'adagrad', 'rowwise_adagrad', 'adam', 'adamw' or 'ftrl'");
}

void set_learning_rate(Optimizer& optimizer, double lr) {
    if (!std::isfinite(lr) || lr < 0) {
        throw std::invalid_argument("lr: got " + std::to_string(lr) +
                                    ", expected a finite number, 0 or more");
    }
    std::visit([lr](auto& kind) { kind.lr = lr; }, optimizer);
}

std::uint32_t state_width(const Optimizer& optimizer, std::uint32_t dim) {
    return std::visit([dim](const auto& kind) { return kind.state_width(dim); }, optimizer);
}

std::uint32_t state_words(const Optimizer& optimizer, std::uint32_t dim) {
    return state_width(optimizer, dim) + (has_steps(optimizer) ? 1 : 0);
}

bool has_steps(const Optimizer& optimizer) {
    return std::visit([](const auto& kind) { return kind.has_steps; }, optimizer);
}

}  // namespace persia
