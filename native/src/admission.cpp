#include "persia/admission.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <stdexcept>
#include <string>

namespace persia {
namespace {

constexpr std::uint64_t kSalt = 0xd1b54a32d192ed03u;
constexpr std::uint32_t kCellsPerRow = 4;

// Counts per bucket: a power of two, or none where nothing is counted.
std::uint32_t cells_for(AdmissionOptions options, std::uint32_t bucket_capacity) {
    if (options.after == 1) return 0;
    std::uint32_t cells = 64;
    while (cells < std::uint64_t{kCellsPerRow} * bucket_capacity && cells < (1u << 30)) cells *= 2;
    return cells;
}

}  // namespace

Admission::Admission(AdmissionOptions options, std::uint64_t seed, std::uint32_t num_buckets,
                     std::uint32_t bucket_capacity)
    : always_(options.after == 1 && options.probability == 1),
      options_(options),
      seed_(mix(seed + kSalt)),
      num_buckets_(num_buckets) {
    if (options.after < 1 || options.after > 255) {
        throw std::invalid_argument("admission: after = " + std::to_string(options.after) +
                                    ", expected 1 to 255");
    }
    if (!(options.probability > 0 && options.probability <= 1)) {
        throw std::invalid_argument("admission: probability = " + std::to_string(options.probability) +
                                    ", expected more than 0 and at most 1");
    }
    admitted_below_ = options.probability == 1
                          ? UINT64_MAX
                          : static_cast<std::uint64_t>(std::ldexp(options.probability, 64));
    cells_ = cells_for(options, bucket_capacity);
    if (cells_ == 0) return;
    const std::size_t bytes = std::size_t{cells_} * std::max(num_buckets, 1u);
    counts_.reset(static_cast<std::uint8_t*>(std::calloc(bytes, 1)));
    if (!counts_) throw std::bad_alloc();
    counted_.assign(num_buckets, 0);
}

std::uint8_t* Admission::cell(std::uint32_t bucket, Key key, unsigned which) const {
    const std::uint64_t hash = mix(key ^ seed_);
    const auto half = static_cast<std::uint32_t>(which == 0 ? hash : hash >> 32);
    return &counts_[std::size_t{bucket} * cells_ + (half & (cells_ - 1))];
}

bool Admission::decide(std::uint32_t bucket, Key key, std::uint32_t step) {
    if (mix(key + seed_) > admitted_below_) return false;
    if (options_.after == 1) return true;
    const std::uint8_t seen = std::min(*cell(bucket, key, 0), *cell(bucket, key, 1));
    if (seen + 1u >= options_.after) return true;
    sightings_.push_back({step, key});
    return false;
}

void Admission::count_sightings(std::uint32_t step, const BucketOf& bucket_of, std::uint32_t first_bucket) {
    if (sightings_.empty()) return;
    const auto end = std::partition(sightings_.begin(), sightings_.end(),
                                    [step](const Sighting& seen) { return seen.step <= step; });
    std::sort(sightings_.begin(), end);
    const auto last = std::unique(sightings_.begin(), end);
    for (auto seen = sightings_.begin(); seen != last; ++seen) {
        const std::uint32_t bucket = bucket_of(seen->key) - first_bucket;
        if (!kept_.empty()) keep(bucket);
        std::uint8_t* const cells[2] = {cell(bucket, seen->key, 0), cell(bucket, seen->key, 1)};
        if (*cells[0] != UINT8_MAX) ++*cells[0];
        if (cells[1] != cells[0] && *cells[1] != UINT8_MAX) ++*cells[1];
        // Forgets slowly, or in the end every key would find its cells full.
        if (++counted_[bucket] < cells_) continue;
        counted_[bucket] = 0;
        std::uint8_t* const begin = &counts_[std::size_t{bucket} * cells_];
        for (std::uint32_t i = 0; i < cells_; ++i) begin[i] /= 2;
    }
    sightings_.erase(sightings_.begin(), end);
}

void Admission::begin_snapshot() {
    if (cells_ == 0) return;
    kept_.assign(num_buckets_, {});
    for (Kept& kept : kept_) kept.needed = true;
}

void Admission::keep(std::uint32_t bucket) {
    Kept& kept = kept_[bucket];
    if (!kept.needed || kept.here) return;
    const std::uint8_t* const begin = &counts_[std::size_t{bucket} * cells_];
    kept.here = true;
    kept.counted = counted_[bucket];
    kept.counts.assign(begin, begin + cells_);
}

void Admission::take_snapshot(std::uint32_t bucket, std::uint32_t& counted,
                              std::vector<std::uint8_t>& counts) {
    if (kept_.empty()) return;
    keep(bucket);
    counted = kept_[bucket].counted;
    counts = std::move(kept_[bucket].counts);
    kept_[bucket] = {};
}

void Admission::end_snapshot() { kept_ = {}; }

void Admission::restore(std::uint32_t bucket, std::uint32_t counted,
                        const std::vector<std::uint8_t>& counts) {
    if (counts.size() != cells_) {
        throw std::invalid_argument("sightings: got " + std::to_string(counts.size()) + " counts, expected " +
                                    std::to_string(cells_));
    }
    if (cells_ == 0) return;
    counted_[bucket] = counted;
    std::copy(counts.begin(), counts.end(), &counts_[std::size_t{bucket} * cells_]);
}

std::size_t Admission::count_bytes(AdmissionOptions options, std::uint32_t num_buckets,
                                   std::uint32_t bucket_capacity) {
    const std::size_t cells = cells_for(options, bucket_capacity);
    return cells == 0 ? 0 : num_buckets * (cells + sizeof(std::uint32_t));
}

std::size_t Admission::held_bytes() const {
    std::size_t kept = kept_.capacity() * sizeof(Kept);
    for (const Kept& each : kept_) kept += each.counts.capacity();
    return kept + std::size_t{cells_} * num_buckets_ + counted_.capacity() * sizeof(counted_[0]) +
           sightings_.capacity() * sizeof(Sighting);
}

}  // namespace persia
