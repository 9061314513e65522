#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "pool_rows.h"

namespace persia {
namespace {

constexpr size_t kTile = 32;  // samples whose output is written together: fits the second-level cache

// Rows of wire format W, of a dim that is known to the compiler unless kDim is kAnyDim.
template <typename W, size_t kDim, typename Index>
class Forward {
  public:
    Forward(const std::byte* rows, size_t dim, const Index* indices)
        : rows_(rows), dim_(dim), indices_(indices), room_(dim) {}

    // Sample b's vector goes to out + b * stride.
    void one_hot(const PoolFeature& feature, size_t begin, size_t end, float* out, size_t stride) {
        const Index* const ids = indices_ + feature.begin;
        const size_t last = feature.end - feature.begin;
        for (size_t b = begin; b < end; ++b) {
            if (b + kAhead < last) prefetch(row(ids[b + kAhead]), W::bytes(dim()));
            W::decode(row(ids[b]), out + b * stride, dim());
        }
    }

    void bags(const PoolFeature& feature, size_t begin, size_t end, float* out, size_t stride) {
        const Index* const ids = indices_ + feature.begin;
        const size_t all = feature.end - feature.begin;
        for (size_t b = begin; b < end; ++b) {
            const size_t first = feature.bags[b], last = feature.bags[b + 1];
            const float scale = first == last ? 1.0f : bag_scale(feature.pooling, last - first);
            float* const to = out + b * stride;
            if constexpr (kDim == kAnyDim) {
                sum(ids, all, first, last, to);
                for (size_t d = 0; d < dim(); ++d) to[d] *= scale;
            } else {
                float total[kDim];  // in registers, or at least nowhere else
                sum(ids, all, first, last, total);
                for (size_t d = 0; d < kDim; ++d) to[d] = total[d] * scale;
            }
        }
    }

    void sequence(const PoolFeature& feature, size_t num_samples, const PoolSequence& out) {
        const Index* const ids = indices_ + feature.begin;
        for (size_t b = 0; b < num_samples; ++b) {
            const size_t first = feature.bags ? feature.bags[b] : b;
            const size_t size = feature.bags ? feature.bags[b + 1] - first : 1;
            float* to = out.values + b * out.length * dim();
            for (size_t i = 0; i < size; ++i, to += dim()) W::decode(row(ids[first + i]), to, dim());
            std::fill(to, out.values + (b + 1) * out.length * dim(), 0.0f);
            bool* const mask = out.mask + b * out.length;
            std::fill(mask, mask + size, true);
            std::fill(mask + size, mask + out.length, false);
        }
    }

  private:
    size_t dim() const { return kDim == kAnyDim ? dim_ : kDim; }
    const std::byte* row(size_t index) const { return rows_ + index * W::bytes(dim()); }

    // The sum of rows ids[first] ... ids[last - 1], zeros if there are none; ids has `all`.
    void sum(const Index* ids, size_t all, size_t first, size_t last, float* to) {
        if (first == last) return static_cast<void>(std::memset(to, 0, dim() * sizeof(float)));
        const auto fetch = [&](size_t i) {
            if (i + kAhead < all) prefetch(row(ids[i + kAhead]), W::bytes(dim()));
        };
        fetch(first);
        W::decode(row(ids[first]), to, dim());
        for (size_t i = first + 1; i < last; ++i) {
            fetch(i);
            if constexpr (kDim == kAnyDim) {
                add_row<W, kDim>(to, row(ids[i]), dim_, room_.data());
            } else {
                float room[kDim];
                add_row<W, kDim>(to, row(ids[i]), kDim, room);
            }
        }
    }

    const std::byte* rows_;
    size_t dim_;
    const Index* indices_;
    std::vector<float> room_;
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

template <typename Kernel>
void pool(Kernel forward, const PoolGroup& group, float* pooled, const std::vector<PoolSequence>& sequences) {
    const size_t stride = group.num_pooled() * group.dim;
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
        if (feature.pooling == Pooling::kSequence) forward.sequence(feature, group.num_samples, *sequence++);
    }
}

}  // namespace

template <typename Index>
void gather_pool_forward(const PoolGroup& group, Wire wire, const std::byte* rows, const Index* indices,
                         float* pooled, const std::vector<PoolSequence>& sequences) {
    group.check();
    check_indices(group, indices);
    with_wire(wire, [&](auto format) {
        with_dim(group.dim, [&](auto dim) {
            pool(Forward<decltype(format), dim(), Index>(rows, group.dim, indices), group, pooled, sequences);
        });
    });
}

template void gather_pool_forward(const PoolGroup&, Wire, const std::byte*, const uint16_t*, float*,
                                  const std::vector<PoolSequence>&);
template void gather_pool_forward(const PoolGroup&, Wire, const std::byte*, const uint32_t*, float*,
                                  const std::vector<PoolSequence>&);

}  // namespace persia
