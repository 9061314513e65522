#include "persia/init.h"

#include <cmath>
#include <stdexcept>

namespace persia {
namespace {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;

// The column-th output of a splitmix64 generator whose start is (seed, key).
std::uint64_t random_bits(std::uint64_t start, std::uint64_t column) {
    return mix(start + (column + 1) * kGolden);
}

}  // namespace

RowInit::RowInit(const std::string& kind, double a, double b, std::uint64_t seed)
    : normal_(kind == "normal"), a_(a), b_(b), seed_(mix(seed + kGolden)) {
    if (kind != "uniform" && kind != "normal") {
        throw std::invalid_argument("init: got '" + kind + "', expected 'uniform' or 'normal'");
    }
    if (!std::isfinite(a) || !std::isfinite(b)) {
        throw std::invalid_argument("init: parameters must be finite numbers");
    }
    if (normal_ && b < 0) throw std::invalid_argument("init: standard deviation must not be negative");
    if (!normal_ && a > b) throw std::invalid_argument("init: low must not exceed high");
}

void RowInit::fill(Key key, float* row, std::uint32_t dim) const {
    const std::uint64_t start = mix(key ^ seed_);
    if (!normal_) {
        const auto low = static_cast<float>(a_);
        const auto width = static_cast<float>(b_ - a_);
        for (std::uint32_t d = 0; d < dim; ++d) {
            const auto bits = static_cast<std::int32_t>(random_bits(start, d) >> 40);
            row[d] = low + width * (static_cast<float>(bits) * 0x1p-24f);
        }
        return;
    }
    // Box-Muller, two columns from two numbers. In double, so that a last-bit difference between math
    // libraries does not reach the float.
    for (std::uint32_t d = 0; d < dim; d += 2) {
        const double u = static_cast<double>((random_bits(start, d) >> 11) + 1) * 0x1p-53;  // (0, 1]
        const double v = static_cast<double>(random_bits(start, d + 1) >> 11) * 0x1p-53;
        const double radius = b_ * std::sqrt(-2.0 * std::log(u));
        const double angle = 6.283185307179586476925 * v;
        row[d] = static_cast<float>(a_ + radius * std::cos(angle));
        if (d + 1 < dim) row[d + 1] = static_cast<float>(a_ + radius * std::sin(angle));
    }
}

}  // namespace persia
