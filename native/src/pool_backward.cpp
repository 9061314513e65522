#include <algorithm>
#include <cstring>
#include <vector>

#include "persia/aligned_array.h"
#include "pool_rows.h"

namespace persia {
namespace {

struct Source {
    const PoolFeature* feature;
    const float* gradient;  // of sample 0
    IndexRange rows;
};

// Adds gradients to the sums of the rows that ids use.
template <size_t kDim, typename Index>
class Backward {
  public:
    Backward(size_t dim, const Index* indices, float* sums) : dim_(dim), indices_(indices), sums_(sums) {}

    // Features with one id per sample, none of which uses a row of another: so their order does not matter,
    // and gradients can be read as they lie. Sample b's gradient of a feature is at its gradient + b *
    // stride.
    void one_hot(const std::vector<Source>& sources, size_t num_samples, size_t stride) {
        IndexTile<Index> tile(indices_, sources.size(), num_samples);
        for (size_t b = 0; b < num_samples; ++b) {
            const uint32_t* const rows = tile.rows(sources, b);
            for (size_t f = 0; f < sources.size(); ++f) {
                prefetch(sum(rows[f + kAhead]), dim() * sizeof(float));
                add(sum(rows[f]), sources[f].gradient + b * stride, dim());
            }
        }
    }

    void bags(const PoolFeature& feature, size_t num_samples, const float* gradient, size_t stride) {
        const Index* const ids = indices_ + feature.begin;
        const size_t all = feature.end - feature.begin;
        std::vector<float> scaled(dim());
        for (size_t b = 0; b < num_samples; ++b) {
            const size_t first = feature.bags[b], last = feature.bags[b + 1];
            const float* from = gradient + b * stride;
            if (first < last && feature.pooling != Pooling::kSum) {
                scale(scaled.data(), from, bag_scale(feature.pooling, last - first), dim());
                from = scaled.data();
            }
            for (size_t i = first; i < last; ++i) {
                if (i + kAhead < all) prefetch(sum(ids[i + kAhead]), dim() * sizeof(float));
                add(sum(ids[i]), from, dim());
            }
        }
    }

    void sequence(const PoolFeature& feature, size_t num_samples, const PoolSequenceGradient& gradient) {
        const Index* const ids = indices_ + feature.begin;
        for (size_t b = 0; b < num_samples; ++b) {
            const size_t first = feature.bags ? feature.bags[b] : b;
            const size_t last = feature.bags ? feature.bags[b + 1] : b + 1;
            const float* from = gradient.values + b * gradient.length * dim();
            for (size_t i = first; i < last; ++i, from += dim()) add(sum(ids[i]), from, dim());
        }
    }

  private:
    size_t dim() const { return kDim == kAnyDim ? dim_ : kDim; }
    float* sum(size_t index) const { return sums_ + index * dim(); }

    size_t dim_;
    const Index* indices_;
    float* sums_;
};

}  // namespace

template <typename Index>
void gather_pool_backward(const PoolGroup& group, const float* pooled_gradient,
                          const std::vector<PoolSequenceGradient>& sequence_gradients, const Index* indices,
                          Wire wire, std::byte* row_gradients) {
    group.check();
    const std::vector<IndexRange> ranges = check_indices(group, indices);
    const size_t dim = group.dim, stride = group.num_pooled() * dim;
    AlignedArray<float> room(wire == Wire::kFp32 ? 0 : group.num_rows * dim);
    float* const sums = wire == Wire::kFp32 ? reinterpret_cast<float*>(row_gradients) : room.data();
    std::fill(sums, sums + group.num_rows * dim, 0.0f);
    with_dim(dim, [&](auto fixed) {
        Backward<fixed(), Index> backward(dim, indices, sums);
        auto sequence = sequence_gradients.begin();
        const float* gradient = pooled_gradient;
        std::vector<Source> pending;
        const auto flush = [&] {
            backward.one_hot(pending, group.num_samples, stride);
            pending.clear();
        };
        for (size_t f = 0; f < group.features.size(); ++f) {
            const PoolFeature& feature = group.features[f];
            const auto overlaps = [&](const Source& source) { return source.rows.overlaps(ranges[f]); };
            if (std::any_of(pending.begin(), pending.end(), overlaps)) flush();
            if (feature.pooling == Pooling::kSequence) {
                if (sequence->values) backward.sequence(feature, group.num_samples, *sequence);
                ++sequence;
            } else if (gradient) {
                if (feature.bags) {
                    backward.bags(feature, group.num_samples, gradient, stride);
                } else {
                    pending.push_back({&feature, gradient, ranges[f]});
                }
                gradient += dim;
            }
        }
        flush();
    });
    if (wire == Wire::kFp32) return;
    with_wire(wire, [&](auto format) {
        for (size_t u = 0; u < group.num_rows; ++u)
            format.encode(sums + u * dim, row_gradients + u * format.bytes(dim), dim);
    });
}

template void gather_pool_backward(const PoolGroup&, const float*, const std::vector<PoolSequenceGradient>&,
                                   const uint16_t*, Wire, std::byte*);
template void gather_pool_backward(const PoolGroup&, const float*, const std::vector<PoolSequenceGradient>&,
                                   const uint32_t*, Wire, std::byte*);

}  // namespace persia
