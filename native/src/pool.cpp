#include "persia/pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace persia {

std::size_t PoolGroup::num_pooled() const {
    return static_cast<std::size_t>(
        std::count_if(features.begin(), features.end(), [](const auto& f) { return f.is_pooled(); }));
}

std::size_t PoolGroup::num_rows(const PoolFeature& feature) const {
    return feature.pooling == Pooling::kJagged ? feature.end - feature.begin : num_samples;
}

std::size_t PoolGroup::num_vectors(const PoolFeature& feature) const {
    return feature.pooling == Pooling::kJagged ? 1 : longest(feature);
}

std::size_t PoolGroup::longest(const PoolFeature& feature) const {
    std::size_t length = 1;
    for (std::size_t b = 0; feature.has_bags() && b < num_samples; ++b) {
        length = std::max<std::size_t>(length, feature.bags[b + 1] - feature.bags[b]);
    }
    return length;
}

void PoolGroup::check() const {
    std::size_t last_end = 0;
    for (const PoolFeature& feature : features) {
        const std::string name = "gather_pool: the feature with ids [" + std::to_string(feature.begin) +
                                 ", " + std::to_string(feature.end) + ") ";
        if (feature.begin < last_end || feature.end < feature.begin) {
            throw std::invalid_argument(name + "overlaps the one before it");
        }
        last_end = feature.end;
        const std::size_t num_ids = feature.end - feature.begin;
        if (!feature.weights.empty() &&
            (feature.weights.size() != num_ids || !feature.has_bags() || feature.pooling != Pooling::kSum)) {
            throw std::invalid_argument(name + "has weights, which need bags, a sum and one for each id");
        }
        if (feature.pooling == Pooling::kJagged) continue;  // each id is for itself
        if (!feature.has_bags() && num_ids != num_samples) {
            throw std::invalid_argument(name + "has no bags, so it needs one id per sample of " +
                                        std::to_string(num_samples));
        }
        if (feature.has_bags() && (feature.bags.size() != num_samples + 1 || feature.bags[0] != 0 ||
                                   feature.bags[num_samples] != num_ids ||
                                   !std::is_sorted(feature.bags.begin(), feature.bags.end()))) {
            throw std::invalid_argument(name + "has bags that don't grow from 0 to its number of ids");
        }
    }
}

}  // namespace persia
