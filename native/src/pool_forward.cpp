#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "persia/fixed_dim.h"
#include "pool_rows.h"

namespace persia {
namespace {

struct Target {
    const PoolFeature* feature;
    float* out;  // of sample 0
};

// Rows of wire format W, of a dim that is known to the compiler unless kDim is 0.
template <typename W, std::uint32_t kDim, typename Index>
class Forward {
  public:
    Forward(const std::byte* rows, std::size_t dim, const Index* indices)
        : rows_(rows), dim_(dim), indices_(indices), room_(dim) {}

    // Features with one id per sample, together: so their vectors are written as they lie. Sample b's vector
    // of a feature goes to its out + b * stride.
    void one_hot(const std::vector<Target>& targets, std::size_t num_samples, std::size_t stride) {
        const std::size_t ahead = ahead_across(W::bytes(dim()));
        IndexTile<Index> tile(indices_, targets.size(), num_samples, 0);
        for (std::size_t b = 0; b < num_samples; ++b) {
            const std::uint32_t* const rows = tile.rows(targets, b);
            for (std::size_t f = 0; f < targets.size(); ++f) {
                prefetch_row(row(rows[f + ahead]), W::bytes(dim()));
                W::decode(row(rows[f]), targets[f].out + b * stride, dim());
            }
        }
    }

    // One feature after the other, while its rows are in the cache.
    void bags(const PoolFeature& feature, std::size_t num_samples, float* out, std::size_t stride) {
        const Index* const ids = indices_ + feature.begin;
        const std::size_t all = feature.end - feature.begin;
        for (std::size_t b = 0; b < num_samples; ++b) {
            const std::size_t first = feature.bags[b], last = feature.bags[b + 1];
            const float factor = first == last ? 1.0f : bag_scale(feature.pooling, last - first);
            float* const to = out + b * stride;
            if (feature.weights.empty()) {
                sum(ids, all, first, last, nullptr, factor, to);
            } else {
                sum(ids, all, first, last, feature.weights.data(), factor, to);
            }
        }
    }

    void jagged(const PoolFeature& feature, const PoolSequence& out) {
        const Index* const ids = indices_ + feature.begin;
        const std::size_t all = feature.end - feature.begin, ahead = ahead_in_bag(W::bytes(dim()));
        for (std::size_t i = 0; i < all; ++i) {
            if (i + ahead < all) prefetch_row(row(ids[i + ahead]), W::bytes(dim()));
            W::decode(row(ids[i]), out.values.data() + i * dim(), dim());
        }
    }

    void sequence(const PoolFeature& feature, std::size_t num_samples, const PoolSequence& out) {
        const Index* const ids = indices_ + feature.begin;
        for (std::size_t b = 0; b < num_samples; ++b) {
            const std::size_t first = feature.has_bags() ? feature.bags[b] : b;
            const std::size_t size = feature.has_bags() ? feature.bags[b + 1] - first : 1;
            float* to = out.values.data() + b * out.length * dim();
            for (std::size_t i = 0; i < size; ++i, to += dim()) W::decode(row(ids[first + i]), to, dim());
            std::fill(to, out.values.data() + (b + 1) * out.length * dim(), 0.0f);
            bool* const mask = out.mask.data() + b * out.length;
            std::fill(mask, mask + size, true);
            std::fill(mask + size, mask + out.length, false);
        }
    }

  private:
    std::size_t dim() const { return kDim == 0 ? dim_ : kDim; }
    const std::byte* row(std::size_t index) const { return rows_ + index * W::bytes(dim()); }

    // The sum of rows ids[first] ... ids[last - 1] times `factor`, zeros if there are none; ids has `all`.
    // Weights: what each of the rows is multiplied by before, or a null pointer.
    template <typename Weights>
    void sum(const Index* ids, std::size_t all, std::size_t first, std::size_t last, Weights weights,
             float factor, float* to) {
        constexpr bool kWeighted = std::is_pointer_v<Weights>;
        const std::size_t ahead = ahead_in_bag(W::bytes(dim()));
        const auto row_of = [&](std::size_t i) {
            if (i + ahead < all) prefetch_row(row(ids[i + ahead]), W::bytes(dim()));
            return row(ids[i]);
        };
        if constexpr (kDim != 0) {
            Lanes total[kDim / kLanes] = {};  // in registers
            for (std::size_t i = first; i < last; ++i) {
                const std::byte* const from = row_of(i);
                for (std::size_t c = 0; c < kDim / kLanes; ++c) {
                    Lanes lanes = load_lanes(W{}, from, c * kLanes, kDim);
                    if constexpr (kWeighted) lanes = lanes * weights[i];
                    total[c] += lanes;
                }
            }
            for (std::size_t c = 0; c < kDim / kLanes; ++c) store(to + c * kLanes, total[c] * factor);
        } else {
            std::memset(to, 0, dim_ * sizeof(float));
            for (std::size_t i = first; i < last; ++i) {
                W::decode(row_of(i), room_.data(), dim_);
                if constexpr (kWeighted) scale(room_.data(), room_.data(), weights[i], dim_);
                add(to, room_.data(), dim_);
            }
            scale(to, to, factor, dim_);
        }
    }

    const std::byte* rows_;
    std::size_t dim_;
    const Index* indices_;
    std::vector<float> room_;
};

template <typename Kernel>
void pool(Kernel forward, const PoolGroup& group, float* pooled, const std::vector<PoolSequence>& sequences) {
    const std::size_t stride = group.num_pooled() * group.dim;
    std::vector<Target> one_hot;
    for (const PoolFeature& feature : group.features) {
        if (!feature.is_pooled()) continue;
        if (feature.has_bags()) {
            forward.bags(feature, group.num_samples, pooled, stride);
        } else {
            one_hot.push_back({&feature, pooled});
        }
        pooled += group.dim;
    }
    forward.one_hot(one_hot, group.num_samples, stride);
    auto sequence = sequences.begin();
    for (const PoolFeature& feature : group.features) {
        if (feature.is_pooled()) continue;
        if (feature.pooling == Pooling::kJagged) {
            forward.jagged(feature, *sequence++);
        } else {
            forward.sequence(feature, group.num_samples, *sequence++);
        }
    }
}

}  // namespace

template <typename Index>
void gather_pool_forward(const PoolGroup& group, ConstRows rows, Span<const Index> indices,
                         Span<float> pooled, const std::vector<PoolSequence>& sequences) {
    group.check();
    check_indices(group, rows.count, indices);
    with_wire(rows.wire, [&](auto format) {
        with_dim(group.dim, [&](auto dim) {
            pool(Forward<decltype(format), dim(), Index>(rows.data, group.dim, indices.data()), group,
                 pooled.data(), sequences);
        });
    });
}

template void gather_pool_forward(const PoolGroup&, ConstRows, Span<const std::uint16_t>, Span<float>,
                                  const std::vector<PoolSequence>&);
template void gather_pool_forward(const PoolGroup&, ConstRows, Span<const std::uint32_t>, Span<float>,
                                  const std::vector<PoolSequence>&);

}  // namespace persia
