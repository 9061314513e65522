#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "persia/aligned_array.h"
#include "pool_rows.h"

namespace persia {
namespace {

// Where the gradient of one feature's ids lies: id i takes data[place(i - begin) * D] * scale(i - begin).
struct GradientSource {
    size_t begin = 0, size = 0;
    const float* data = nullptr;    // null: the gradient is zero
    size_t step = 0;                // one-hot: id b lies at place b * step
    AlignedArray<uint32_t> places;  // multi-hot: one per id
    AlignedArray<float> scales;     // mean and sqrtn: one per id
};

GradientSource pooled_source(const PoolGroup& group, const PoolFeature& feature, const float* data,
                             size_t num_pooled) {
    GradientSource source{feature.begin, feature.end - feature.begin, data, num_pooled, {}, {}};
    if (!feature.bags || !data) return source;
    source.places = AlignedArray<uint32_t>(source.size);
    const bool scaled = feature.pooling != Pooling::kSum;
    if (scaled) source.scales = AlignedArray<float>(source.size);
    for (size_t b = 0; b < group.num_samples; ++b) {
        const size_t first = feature.bags[b], last = feature.bags[b + 1];
        std::fill(source.places.data() + first, source.places.data() + last, b * num_pooled);
        if (scaled && first < last) {
            const float scale = bag_scale(feature.pooling, last - first);
            std::fill(source.scales.data() + first, source.scales.data() + last, scale);
        }
    }
    return source;
}

GradientSource sequence_source(const PoolGroup& group, const PoolFeature& feature,
                               const PoolSequenceGradient& gradient) {
    GradientSource source{
        feature.begin, feature.end - feature.begin, gradient.values, gradient.length, {}, {}};
    if (!feature.bags || !gradient.values) return source;
    source.places = AlignedArray<uint32_t>(source.size);
    for (size_t b = 0; b < group.num_samples; ++b) {
        const size_t first = feature.bags[b];
        for (size_t i = first; i < feature.bags[b + 1]; ++i)
            source.places[i] = static_cast<uint32_t>(b * gradient.length + i - first);
    }
    return source;
}

// The sum of one row's gradients. With a known dim it stays in registers: a row that thousands of ids use
// would otherwise wait for its own last store on each of them.
template <size_t kDim>
struct RowSum {
    explicit RowSum(size_t) {}
    static constexpr size_t dim() { return kDim; }
    const float* data() const { return sum; }
    void clear() { std::memset(sum, 0, sizeof sum); }
    void add(const float* from) {
        for (size_t d = 0; d < kDim; ++d) sum[d] += from[d];
    }
    void add_scaled(const float* from, float scale) {
        for (size_t d = 0; d < kDim; ++d) sum[d] += from[d] * scale;
    }
    float sum[kDim];
};

template <>
struct RowSum<kAnyDim> {
    explicit RowSum(size_t dim) : sum(dim) {}
    size_t dim() const { return sum.size(); }
    const float* data() const { return sum.data(); }
    void clear() { std::fill(sum.begin(), sum.end(), 0.0f); }
    void add(const float* __restrict from) {
        float* const to = sum.data();
        for (size_t d = 0, n = dim(); d < n; ++d) to[d] += from[d];
    }
    void add_scaled(const float* __restrict from, float scale) {
        float* const to = sum.data();
        for (size_t d = 0, n = dim(); d < n; ++d) to[d] += from[d] * scale;
    }
    std::vector<float> sum;
};

const GradientSource& source_of(const std::vector<GradientSource>& sources, size_t position) {
    for (const GradientSource& source : sources) {
        if (position - source.begin < source.size) return source;  // wraps around below begin
    }
    throw std::out_of_range("gather_pool: position " + std::to_string(position) +
                            " is not an id of the group's features");
}

template <typename W, size_t kDim>
void sum_rows(const PoolGroup& group, const std::vector<GradientSource>& sources, const uint32_t* row_offsets,
              const uint32_t* positions, std::byte* out) {
    const size_t last = row_offsets[group.num_rows];
    const GradientSource none;
    // Of the last id: rows of a table lie together, so it seldom changes.
    const GradientSource* source = &none;
    const auto at = [&](size_t id) {
        const size_t place = source->places.size() ? source->places[id] : id * source->step;
        return source->data + place * (kDim == kAnyDim ? group.dim : kDim);
    };
    RowSum<kDim> sum(group.dim);
    for (size_t u = 0; u < group.num_rows; ++u, out += W::bytes(sum.dim())) {
        sum.clear();
        const size_t end = row_offsets[u + 1];
        for (size_t k = row_offsets[u]; k < end; ++k) {
            size_t id = positions[k] - source->begin;
            if (id >= source->size) {
                source = &source_of(sources, positions[k]);
                id = positions[k] - source->begin;
            }
            if (!source->data) continue;
            const size_t ahead = k + kAhead < last ? positions[k + kAhead] - source->begin : id;
            if (ahead < source->size) prefetch(at(ahead), sum.dim() * sizeof(float));
            if (source->scales.size()) {
                sum.add_scaled(at(id), source->scales[id]);
            } else {
                sum.add(at(id));
            }
        }
        W::encode(sum.data(), out, sum.dim());
    }
}

}  // namespace

void gather_pool_backward(const PoolGroup& group, const float* pooled_gradient,
                          const std::vector<PoolSequenceGradient>& sequence_gradients,
                          const uint32_t* row_offsets, const uint32_t* positions, Wire wire,
                          std::byte* row_gradients) {
    group.check();
    std::vector<GradientSource> sources;
    auto sequence = sequence_gradients.begin();
    const float* pooled = pooled_gradient;
    for (const PoolFeature& feature : group.features) {
        if (feature.pooling == Pooling::kSequence) {
            sources.push_back(sequence_source(group, feature, *sequence++));
        } else {
            sources.push_back(pooled_source(group, feature, pooled, group.num_pooled()));
            if (pooled) pooled += group.dim;
        }
    }
    with_wire(wire, [&](auto format) {
        with_dim(group.dim, [&](auto dim) {
            sum_rows<decltype(format), dim()>(group, sources, row_offsets, positions, row_gradients);
        });
    });
}

}  // namespace persia
