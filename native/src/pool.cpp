#include "persia/pool.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace persia {
namespace {

constexpr size_t kTile = 32;  // samples whose output is written together: fits the first-level cache
constexpr size_t kAhead = 8;  // rows fetched ahead of their use
constexpr size_t kAnyDim = 0;

// What a bag's sum is multiplied by. Empty bags are never scaled.
float bag_scale(Pooling pooling, size_t size) {
    if (pooling == Pooling::kMean) return 1.0f / static_cast<float>(size);
    if (pooling == Pooling::kSqrtn) return 1.0f / std::sqrt(static_cast<float>(size));
    return 1.0f;
}

// Loops over a row. With a dim known to the compiler they become a few vector instructions.
template <size_t kDim>
struct RowOps {
    static constexpr size_t kFixedDim = kDim;
    explicit RowOps(size_t dim) : dim_(dim) {}
    size_t dim() const { return kDim == kAnyDim ? dim_ : kDim; }
    void copy(float* __restrict to, const float* __restrict from) const {
        std::memcpy(to, from, dim() * sizeof(float));
    }
    void zero(float* to) const { std::memset(to, 0, dim() * sizeof(float)); }
    void add(float* __restrict to, const float* __restrict from) const {
        for (size_t d = 0; d < dim(); ++d) to[d] += from[d];
    }
    void scale(float* to, float scale) const {
        for (size_t d = 0; d < dim(); ++d) to[d] *= scale;
    }
    size_t dim_;
};

template <typename Run>
void with_dim(size_t dim, const Run& run) {
    switch (dim) {
        case 8:
            return run(RowOps<8>(dim));
        case 16:
            return run(RowOps<16>(dim));
        case 32:
            return run(RowOps<32>(dim));
        case 64:
            return run(RowOps<64>(dim));
        case 128:
            return run(RowOps<128>(dim));
        default:
            return run(RowOps<kAnyDim>(dim));
    }
}

// One feature of the forward pass: where sample b's vector goes is out + b * stride.
template <typename Index, typename Ops>
class Forward {
  public:
    Forward(const Ops& ops, const float* rows, const Index* indices)
        : ops_(ops), rows_(rows), indices_(indices) {}

    void one_hot(const PoolFeature& feature, size_t begin, size_t end, float* out, size_t stride) const {
        const Index* const ids = indices_ + feature.begin;
        for (size_t b = begin; b < end; ++b) {
            if (b + kAhead < end) __builtin_prefetch(row(ids[b + kAhead]));
            ops_.copy(out + b * stride, row(ids[b]));
        }
    }

    void bags(const PoolFeature& feature, size_t begin, size_t end, float* out, size_t stride) const {
        const Index* const ids = indices_ + feature.begin;
        for (size_t b = begin; b < end; ++b) {
            const size_t first = feature.bags[b], last = feature.bags[b + 1];
            float* const to = out + b * stride;
            if (first == last) {
                ops_.zero(to);
                continue;
            }
            ops_.copy(to, row(ids[first]));
            for (size_t i = first + 1; i < last; ++i) ops_.add(to, row(ids[i]));
            if (feature.pooling != Pooling::kSum) ops_.scale(to, bag_scale(feature.pooling, last - first));
        }
    }

    void sequence(const PoolFeature& feature, size_t num_samples, const PoolSequence& out) const {
        const Index* const ids = indices_ + feature.begin;
        const size_t dim = ops_.dim();
        for (size_t b = 0; b < num_samples; ++b) {
            const size_t first = feature.bags ? feature.bags[b] : b;
            const size_t size = feature.bags ? feature.bags[b + 1] - first : 1;
            float* to = out.values + b * out.length * dim;
            for (size_t i = 0; i < size; ++i, to += dim) ops_.copy(to, row(ids[first + i]));
            std::fill(to, out.values + (b + 1) * out.length * dim, 0.0f);
            bool* const mask = out.mask + b * out.length;
            std::fill(mask, mask + size, true);
            std::fill(mask + size, mask + out.length, false);
        }
    }

  private:
    const float* row(size_t index) const { return rows_ + index * ops_.dim(); }
    Ops ops_;
    const float* rows_;
    const Index* indices_;
};

template <typename Index>
void check_indices(const PoolGroup& group, const Index* indices) {
    for (const PoolFeature& feature : group.features) {
        Index largest = 0;
        for (size_t i = feature.begin; i < feature.end; ++i) largest = std::max(largest, indices[i]);
        if (feature.begin < feature.end && largest >= group.num_rows) {
            throw std::out_of_range("gather_pool: index " + std::to_string(largest) + " in a group of " +
                                    std::to_string(group.num_rows) + " rows");
        }
    }
}

// Where the gradient of one feature's ids lies: id i takes data[source(i - begin)] * scale(i - begin).
struct GradientSource {
    size_t begin = 0, size = 0;
    const float* data = nullptr;  // null: the gradient is zero
    size_t stride = 0;            // one-hot: id b lies at b * stride
    std::vector<size_t> offsets;  // multi-hot: one per id
    std::vector<float> scales;    // mean and sqrtn: one per id
};

GradientSource pooled_source(const PoolGroup& group, const PoolFeature& feature, const float* data,
                             size_t stride) {
    GradientSource source{feature.begin, feature.end - feature.begin, data, stride, {}, {}};
    if (!feature.bags || !data) return source;
    source.offsets.resize(source.size);
    if (feature.pooling != Pooling::kSum) source.scales.resize(source.offsets.size());
    for (size_t b = 0; b < group.num_samples; ++b) {
        const size_t first = feature.bags[b], last = feature.bags[b + 1];
        std::fill(source.offsets.begin() + first, source.offsets.begin() + last, b * stride);
        if (!source.scales.empty() && first < last) {
            const float scale = bag_scale(feature.pooling, last - first);
            std::fill(source.scales.begin() + first, source.scales.begin() + last, scale);
        }
    }
    return source;
}

GradientSource sequence_source(const PoolGroup& group, const PoolFeature& feature,
                               const PoolSequenceGradient& gradient) {
    const size_t stride = gradient.length * group.dim;
    GradientSource source{feature.begin, feature.end - feature.begin, gradient.values, stride, {}, {}};
    if (!feature.bags || !gradient.values) return source;
    source.offsets.resize(source.size);
    for (size_t b = 0; b < group.num_samples; ++b) {
        const size_t first = feature.bags[b];
        for (size_t i = first; i < feature.bags[b + 1]; ++i) {
            source.offsets[i] = b * stride + (i - first) * group.dim;
        }
    }
    return source;
}

// The sum of one row's gradients. With a known dim it stays in registers: a row that thousands of ids use
// would otherwise wait for its own last store on each of them.
template <size_t kDim>
struct RowSum {
    RowSum(size_t, float* out) : out(out) {}
    void add(const float* from) {
        for (size_t d = 0; d < kDim; ++d) sum[d] += from[d];
    }
    void add_scaled(const float* from, float scale) {
        for (size_t d = 0; d < kDim; ++d) sum[d] += from[d] * scale;
    }
    void store() const { std::memcpy(out, sum, sizeof(sum)); }
    float* const out;
    float sum[kDim] = {};
};

template <>
struct RowSum<kAnyDim> {
    RowSum(size_t dim, float* out) : dim(dim), out(out) { std::memset(out, 0, dim * sizeof(float)); }
    void add(const float* __restrict from) {
        for (size_t d = 0; d < dim; ++d) out[d] += from[d];
    }
    void add_scaled(const float* __restrict from, float scale) {
        for (size_t d = 0; d < dim; ++d) out[d] += from[d] * scale;
    }
    void store() const {}
    const size_t dim;
    float* const out;
};

const GradientSource& source_of(const std::vector<GradientSource>& sources, size_t position) {
    for (const GradientSource& source : sources) {
        if (position - source.begin < source.size) return source;  // wraps around below begin
    }
    throw std::out_of_range("gather_pool: position " + std::to_string(position) +
                            " is not an id of the group's features");
}

template <size_t kDim>
void sum_rows(const PoolGroup& group, const std::vector<GradientSource>& sources, const uint32_t* row_offsets,
              const uint32_t* positions, float* out) {
    const size_t last = row_offsets[group.num_rows];
    const GradientSource none;
    const GradientSource* source =
        &none;  // of the last id: rows of a table lie together, so it seldom changes
    for (size_t u = 0; u < group.num_rows; ++u, out += group.dim) {
        RowSum<kDim> sum(group.dim, out);
        const size_t end = row_offsets[u + 1];
        for (size_t k = row_offsets[u]; k < end; ++k) {
            size_t id = positions[k] - source->begin;
            if (id >= source->size) {
                source = &source_of(sources, positions[k]);
                id = positions[k] - source->begin;
            }
            if (!source->data) continue;
            if (source->offsets.empty()) {
                const size_t ahead = k + kAhead < last ? positions[k + kAhead] - source->begin : id;
                if (ahead < source->size) __builtin_prefetch(source->data + ahead * source->stride);
                sum.add(source->data + id * source->stride);
            } else if (source->scales.empty()) {
                sum.add(source->data + source->offsets[id]);
            } else {
                sum.add_scaled(source->data + source->offsets[id], source->scales[id]);
            }
        }
        sum.store();
    }
}

}  // namespace

size_t PoolGroup::num_pooled() const {
    return static_cast<size_t>(std::count_if(features.begin(), features.end(),
                                             [](const auto& f) { return f.pooling != Pooling::kSequence; }));
}

size_t PoolGroup::longest(const PoolFeature& feature) const {
    size_t length = 1;
    for (size_t b = 0; feature.bags && b < num_samples; ++b) {
        length = std::max<size_t>(length, feature.bags[b + 1] - feature.bags[b]);
    }
    return length;
}

void PoolGroup::check() const {
    size_t last_end = 0;
    for (const PoolFeature& feature : features) {
        const std::string name = "gather_pool: the feature with ids [" + std::to_string(feature.begin) +
                                 ", " + std::to_string(feature.end) + ") ";
        if (feature.begin < last_end || feature.end < feature.begin) {
            throw std::invalid_argument(name + "overlaps the one before it");
        }
        last_end = feature.end;
        const size_t num_ids = feature.end - feature.begin;
        if (!feature.bags && num_ids != num_samples) {
            throw std::invalid_argument(name + "has no bags, so it needs one id per sample of " +
                                        std::to_string(num_samples));
        }
        if (feature.bags && (feature.bags[0] != 0 || feature.bags[num_samples] != num_ids ||
                             !std::is_sorted(feature.bags, feature.bags + num_samples + 1))) {
            throw std::invalid_argument(name + "has bags that don't grow from 0 to its number of ids");
        }
    }
}

template <typename Index>
void gather_pool_forward(const PoolGroup& group, const float* rows, const Index* indices, float* pooled,
                         const std::vector<PoolSequence>& sequences) {
    group.check();
    check_indices(group, indices);
    const size_t stride = group.num_pooled() * group.dim;
    with_dim(group.dim, [&](const auto& ops) {
        const Forward<Index, std::decay_t<decltype(ops)>> forward(ops, rows, indices);
        for (size_t begin = 0; begin < group.num_samples; begin += kTile) {
            const size_t end = std::min(begin + kTile, group.num_samples);
            float* out = pooled;
            for (const PoolFeature& feature : group.features) {
                if (feature.pooling == Pooling::kSequence) continue;
                if (feature.bags) {
                    forward.bags(feature, begin, end, out, stride);
                } else {
                    forward.one_hot(feature, begin, end, out, stride);
                }
                out += group.dim;
            }
        }
        auto sequence = sequences.begin();
        for (const PoolFeature& feature : group.features) {
            if (feature.pooling == Pooling::kSequence)
                forward.sequence(feature, group.num_samples, *sequence++);
        }
    });
}

template void gather_pool_forward(const PoolGroup&, const float*, const uint16_t*, float*,
                                  const std::vector<PoolSequence>&);
template void gather_pool_forward(const PoolGroup&, const float*, const uint32_t*, float*,
                                  const std::vector<PoolSequence>&);

void gather_pool_backward(const PoolGroup& group, const float* pooled_gradient,
                          const std::vector<PoolSequenceGradient>& sequence_gradients,
                          const uint32_t* row_offsets, const uint32_t* positions, float* row_gradients) {
    group.check();
    const size_t stride = group.num_pooled() * group.dim;
    std::vector<GradientSource> sources;
    auto sequence = sequence_gradients.begin();
    const float* pooled = pooled_gradient;
    for (const PoolFeature& feature : group.features) {
        if (feature.pooling == Pooling::kSequence) {
            sources.push_back(sequence_source(group, feature, *sequence++));
        } else {
            sources.push_back(pooled_source(group, feature, pooled, stride));
            if (pooled) pooled += group.dim;
        }
    }
    with_dim(group.dim, [&](const auto& ops) {
        sum_rows<std::decay_t<decltype(ops)>::kFixedDim>(group, sources, row_offsets, positions,
                                                         row_gradients);
    });
}

}  // namespace persia
