#include <algorithm>
#include <vector>

#include "persia/aligned_array.h"
#include "persia/codec.h"
#include "persia/fixed_dim.h"
#include "pool_rows.h"

namespace persia {
namespace {

// As many sums as stay in the second-level cache from their zeroing to their encoding.
constexpr std::size_t kBlockBytes = 384 * 1024;
constexpr std::size_t kSamplesAhead = 8;  // whose gradients are fetched

// Rows [first, end) and the features, ascending, all of whose rows these are.
struct RowBlock {
    std::size_t first, end;
    std::vector<std::size_t> features;
    bool one_hot;  // all of them have one id per sample
};

// All rows of the group, in blocks of at most `limit` rows; of more where features share rows. Features with
// one id per sample stay together: their gradients are read once and as they lie, which matters more than
// where the sums are.
std::vector<RowBlock> row_blocks(const PoolGroup& group, std::size_t num_rows,
                                 const std::vector<IndexRange>& ranges, std::size_t limit) {
    std::vector<std::size_t> order;
    for (std::size_t f = 0; f < ranges.size(); ++f)
        if (ranges[f].first <= ranges[f].last) order.push_back(f);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return ranges[a].first < ranges[b].first; });
    std::vector<RowBlock> blocks{{0, 0, {}, true}};
    for (const std::size_t f : order) {
        const std::size_t end = ranges[f].last + 1;
        const bool one_hot = group.features[f].is_one_hot();
        RowBlock& block = blocks.back();
        if (block.features.empty() || ranges[f].first < block.end || end - block.first <= limit ||
            (one_hot && block.one_hot)) {
            block.end = std::max(block.end, end);
            block.features.push_back(f);
            block.one_hot &= one_hot;
        } else {
            blocks.push_back({block.end, end, {f}, one_hot});
        }
    }
    blocks.back().end = num_rows;
    for (RowBlock& block : blocks) std::sort(block.features.begin(), block.features.end());
    return blocks;
}

struct Source {
    const PoolFeature* feature;
    const float* gradient;  // of sample 0
    IndexRange rows;
};

// Adds gradients to the sums of the rows that ids use; the sums are those of rows first, first + 1, ...
template <std::uint32_t kDim, typename Index>
class Backward {
  public:
    Backward(std::size_t dim, const Index* indices, std::size_t num_samples)
        : dim_(dim), indices_(indices), num_samples_(num_samples), scaled_(dim) {}

    void into(float* sums, std::size_t first) {
        sums_ = sums;
        first_ = first;
    }

    // Features with one id per sample, none of which uses a row of another: so their order does not matter,
    // and gradients can be read as they lie. Sample b's gradient of a feature is at its gradient + b *
    // stride.
    void one_hot(const std::vector<Source>& sources, std::size_t stride) {
        const std::size_t row_bytes = dim() * sizeof(float), ahead = ahead_across(row_bytes);
        IndexTile<Index> tile(indices_, sources.size(), num_samples_, first_);
        for (std::size_t b = 0; b < num_samples_; ++b) {
            const std::uint32_t* const rows = tile.rows(sources, b);
            for (std::size_t f = 0; f < sources.size(); ++f) {
                prefetch_row(sum(rows[f + ahead]), row_bytes);
                add(sum(rows[f]), sources[f].gradient + b * stride, dim());
            }
        }
    }

    void bags(const PoolFeature& feature, const float* gradient, std::size_t stride) {
        const Index* const ids = indices_ + feature.begin;
        const std::size_t all = feature.end - feature.begin;
        const std::size_t row_bytes = dim() * sizeof(float), ahead = ahead_in_bag(row_bytes);
        for (std::size_t b = 0; b < num_samples_; ++b) {
            const std::size_t first = feature.bags[b], last = feature.bags[b + 1];
            const float* const from = gradient + b * stride;
            prefetch_row(from + kSamplesAhead * stride, row_bytes);
            if (first == last) continue;
            const float factor = bag_scale(feature.pooling, last - first);
            const auto row_of = [&](std::size_t i) {
                if (i + ahead < all) prefetch_row(sum(ids[i + ahead]), row_bytes);
                return sum(ids[i]);
            };
            if constexpr (kDim != 0) {
                // In registers: reading it again for each id, from an address that is not a multiple of a
                // vector's size, among stores to sums, takes three times as long.
                Lanes term[kDim / kLanes];
                for (std::size_t c = 0; c < kDim / kLanes; ++c) term[c] = load(from + c * kLanes) * factor;
                for (std::size_t i = first; i < last; ++i) {
                    float* const to = row_of(i);
                    for (std::size_t c = 0; c < kDim / kLanes; ++c)
                        store(to + c * kLanes, load(to + c * kLanes) + term[c]);
                }
            } else {
                scale(scaled_.data(), from, factor, dim_);
                for (std::size_t i = first; i < last; ++i) add(row_of(i), scaled_.data(), dim_);
            }
        }
    }

    // As `bags` of a sum, apart from it: beside this loop that one takes a fifth longer.
    void weighted_bags(const PoolFeature& feature, const float* gradient, std::size_t stride) {
        const Index* const ids = indices_ + feature.begin;
        const std::size_t all = feature.end - feature.begin;
        const std::size_t row_bytes = dim() * sizeof(float), ahead = ahead_in_bag(row_bytes);
        for (std::size_t b = 0; b < num_samples_; ++b) {
            for (std::size_t i = feature.bags[b]; i < feature.bags[b + 1]; ++i) {
                if (i + ahead < all) prefetch_row(sum(ids[i + ahead]), row_bytes);
                scale(scaled_.data(), gradient + b * stride, feature.weights[i], dim());
                add(sum(ids[i]), scaled_.data(), dim());
            }
        }
    }

    void jagged(const PoolFeature& feature, const PoolSequenceGradient& gradient) {
        const Index* const ids = indices_ + feature.begin;
        const std::size_t row_bytes = dim() * sizeof(float), ahead = ahead_in_bag(row_bytes);
        const std::size_t all = feature.end - feature.begin;
        const float* from = gradient.values.data();
        for (std::size_t i = 0; i < all; ++i, from += dim()) {
            if (i + ahead < all) prefetch_row(sum(ids[i + ahead]), row_bytes);
            add(sum(ids[i]), from, dim());
        }
    }

    void sequence(const PoolFeature& feature, const PoolSequenceGradient& gradient) {
        const Index* const ids = indices_ + feature.begin;
        for (std::size_t b = 0; b < num_samples_; ++b) {
            const std::size_t first = feature.has_bags() ? feature.bags[b] : b;
            const std::size_t last = feature.has_bags() ? feature.bags[b + 1] : b + 1;
            const float* from = gradient.values.data() + b * gradient.length * dim();
            for (std::size_t i = first; i < last; ++i, from += dim()) add(sum(ids[i]), from, dim());
        }
    }

  private:
    std::size_t dim() const { return dim_or<kDim>(static_cast<std::uint32_t>(dim_)); }
    float* sum(std::size_t index) const { return sums_ + (index - first_) * dim(); }

    std::size_t dim_;
    const Index* indices_;
    std::size_t num_samples_;
    std::vector<float> scaled_;  // a bag's gradient
    float* sums_ = nullptr;
    std::size_t first_ = 0;
};

// Where each feature's gradients are; null, or none, where they are zeros.
struct Gradient {
    const float* pooled;            // of sample 0
    PoolSequenceGradient sequence;  // of a feature that isn't pooled
};

std::vector<Gradient> gradients_of(const PoolGroup& group, const float* pooled,
                                   const std::vector<PoolSequenceGradient>& sequences) {
    std::vector<Gradient> gradients;
    auto sequence = sequences.begin();
    for (const PoolFeature& feature : group.features) {
        if (!feature.is_pooled()) {
            gradients.push_back({nullptr, *sequence++});
        } else {
            gradients.push_back({pooled, {}});
            if (pooled) pooled += group.dim;
        }
    }
    return gradients;
}

template <typename Kernel>
void add_block(Kernel& backward, const PoolGroup& group, const std::vector<Gradient>& gradients,
               const std::vector<IndexRange>& ranges, const RowBlock& block) {
    const std::size_t stride = group.num_pooled() * group.dim;
    std::vector<Source> pending;
    const auto flush = [&] {
        if (!pending.empty()) backward.one_hot(pending, stride);
        pending.clear();
    };
    for (const std::size_t f : block.features) {
        const PoolFeature& feature = group.features[f];
        const auto overlaps = [&](const Source& source) { return source.rows.overlaps(ranges[f]); };
        if (std::any_of(pending.begin(), pending.end(), overlaps)) flush();
        if (!feature.is_pooled()) {
            if (gradients[f].sequence.values.empty()) continue;
            if (feature.pooling == Pooling::kJagged) {
                backward.jagged(feature, gradients[f].sequence);
            } else {
                backward.sequence(feature, gradients[f].sequence);
            }
        } else if (!gradients[f].pooled) {
            continue;
        } else if (!feature.weights.empty()) {
            backward.weighted_bags(feature, gradients[f].pooled, stride);
        } else if (feature.has_bags()) {
            backward.bags(feature, gradients[f].pooled, stride);
        } else {
            pending.push_back({&feature, gradients[f].pooled, ranges[f]});
        }
    }
    flush();
}

}  // namespace

template <typename Index>
bool gather_pool_backward(const PoolGroup& group, Span<const float> pooled_gradient,
                          const std::vector<PoolSequenceGradient>& sequence_gradients,
                          Span<const Index> indices, Rows row_gradients) {
    group.check();
    const Wire wire = row_gradients.wire;
    const std::vector<IndexRange> ranges = check_indices(group, row_gradients.count, indices);
    const std::vector<Gradient> gradients =
        gradients_of(group, pooled_gradient.empty() ? nullptr : pooled_gradient.data(), sequence_gradients);
    const std::size_t dim = group.dim, row_bytes = std::max<std::size_t>(dim, 1) * sizeof(float);
    const std::vector<RowBlock> blocks =
        row_blocks(group, row_gradients.count, ranges, kBlockBytes / row_bytes);
    std::size_t most = 0;
    for (const RowBlock& block : blocks) most = std::max(most, block.end - block.first);
    AlignedArray<float> room(wire == Wire::kFp32 ? 0 : most * dim);
    bool finite = true;
    with_dim(dim, [&](auto fixed) {
        Backward<fixed(), Index> backward(dim, indices.data(), group.num_samples);
        for (const RowBlock& block : blocks) {
            float* const sums = wire == Wire::kFp32
                                    ? reinterpret_cast<float*>(row_gradients.data) + block.first * dim
                                    : room.data();
            std::fill(sums, sums + (block.end - block.first) * dim, 0.0f);
            backward.into(sums, block.first);
            add_block(backward, group, gradients, ranges, block);
            finite &= all_finite(sums, (block.end - block.first) * dim);
            if (wire == Wire::kFp32) continue;
            with_wire(wire, [&](auto format) {
                const std::size_t length = fixed() ? fixed() : dim, bytes = format.bytes(length);
                std::byte* const out = row_gradients.data + block.first * bytes;
                for (std::size_t u = 0; u < block.end - block.first; ++u)
                    format.encode(sums + u * length, out + u * bytes, length);
            });
        }
    });
    return finite;
}

template bool gather_pool_backward(const PoolGroup&, Span<const float>,
                                   const std::vector<PoolSequenceGradient>&, Span<const std::uint16_t>, Rows);
template bool gather_pool_backward(const PoolGroup&, Span<const float>,
                                   const std::vector<PoolSequenceGradient>&, Span<const std::uint32_t>, Rows);

}  // namespace persia
