// What both directions of gather_pool need to know about a row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "persia/lanes.h"
#include "persia/pool.h"
#include "persia/prefetch.h"

namespace persia {

// Rows fetched ahead of their use: the more, the sooner a row is done with. Fewer where samples are gone
// through side by side, as the outputs or gradients of all features need room in the first-level cache too.
constexpr std::size_t kMostAhead = 64;
constexpr std::size_t ahead_in_bag(std::size_t row_bytes) { return row_bytes <= 64 ? kMostAhead : 32; }
constexpr std::size_t ahead_across(std::size_t row_bytes) { return row_bytes <= 64 ? 32 : 16; }

// What a bag's sum is multiplied by. Empty bags are never scaled.
inline float bag_scale(Pooling pooling, std::size_t size) {
    if (pooling == Pooling::kMean) return 1.0f / static_cast<float>(size);
    if (pooling == Pooling::kSqrtn) return 1.0f / std::sqrt(static_cast<float>(size));
    return 1.0f;
}

// Asks for a row of so many bytes; of a long one for the first lines, the CPU follows by itself.
inline void prefetch_row(const void* row, std::size_t bytes) {
    prefetch_lines(row, std::min<std::size_t>(lines_of(bytes), 4));
}

struct IndexRange {
    std::size_t first, last;  // an empty range has first > last
    bool overlaps(const IndexRange& other) const { return first <= other.last && other.first <= last; }
};

// The rows that each feature uses; throws std::out_of_range if there is no such row.
template <typename Index>
std::vector<IndexRange> check_indices(const PoolGroup& group, std::size_t num_rows,
                                      Span<const Index> indices) {
    std::vector<IndexRange> ranges;
    for (const PoolFeature& feature : group.features) {
        Index least = std::numeric_limits<Index>::max(), largest = 0;
        for (std::size_t i = feature.begin; i < feature.end; ++i) {
            least = std::min(least, indices[i]);
            largest = std::max(largest, indices[i]);
        }
        const bool empty = feature.begin == feature.end;
        if (!empty && largest >= num_rows) {
            throw std::out_of_range("gather_pool: index " + std::to_string(largest) + " in a group of " +
                                    std::to_string(num_rows) + " rows");
        }
        ranges.push_back(empty ? IndexRange{1, 0} : IndexRange{least, largest});
    }
    return ranges;
}

// Rows of features with one id per sample, sample by sample. Features lie in `indices` at a stride that is
// often a power of two, so that reading them side by side would use few of the cache's sets: they are copied,
// some samples at a time.
template <typename Index>
class IndexTile {
  public:
    IndexTile(const Index* indices, std::size_t num_features, std::size_t num_samples, std::size_t any_row)
        : indices_(indices),
          num_samples_(num_samples),
          rows_(kSamples * num_features + kMostAhead, static_cast<std::uint32_t>(any_row)) {}

    // Of sample b, [F], and kMostAhead more that may be anything that is a row. To be asked for with b
    // growing.
    template <typename Features>
    const std::uint32_t* rows(const std::vector<Features>& features, std::size_t b) {
        const std::size_t num_features = features.size(), at = b % kSamples;
        if (at == 0) {
            const std::size_t size = std::min(kSamples, num_samples_ - b);
            for (std::size_t f = 0; f < num_features; ++f) {
                const Index* const from = indices_ + features[f].feature->begin + b;
                for (std::size_t i = 0; i < size; ++i) rows_[i * num_features + f] = from[i];
            }
        }
        return rows_.data() + at * num_features;
    }

  private:
    static constexpr std::size_t kSamples = 32;
    const Index* indices_;
    std::size_t num_samples_;
    std::vector<std::uint32_t> rows_;
};

// Eight elements of a row, from element d on; what W::decode gives.
inline Lanes load_lanes(WireFp32, const std::byte* row, std::size_t d, std::size_t) {
    return load(reinterpret_cast<const float*>(row) + d);
}

inline Lanes load_lanes(WireFp16, const std::byte* row, std::size_t d, std::size_t) {
    const std::byte* const from = row + 2 * d;
#ifdef __F16C__
    const __m256 lanes = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return (Lanes)lanes;
#else
    float room[kLanes];
    WireFp16::decode(from, room, kLanes);
    return load(room);
#endif
}

inline Lanes load_lanes(WireBf16, const std::byte* row, std::size_t d, std::size_t) {
    typedef std::uint16_t Words __attribute__((vector_size(16)));
    typedef std::uint32_t Bits __attribute__((vector_size(32)));
    Words words;
    std::memcpy(&words, row + 2 * d, sizeof words);
    const Bits bits = __builtin_convertvector(words, Bits) << 16;
    return (Lanes)bits;
}

inline Lanes load_lanes(WireScaledFp16, const std::byte* row, std::size_t d, std::size_t dim) {
    float norm;
    std::memcpy(&norm, row + 2 * dim, sizeof norm);
    return load_lanes(WireFp16{}, row, d, dim) * (1 / WireScaledFp16::kKappa) * norm;
}

}  // namespace persia
