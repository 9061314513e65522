#include "persia/eviction.h"

#include <algorithm>
#include <stdexcept>

namespace persia {
namespace {

constexpr std::size_t kMinCandidates = 64;
constexpr std::size_t kCandidateShare = 20;  // of the rows: each row that goes costs 20 rows of scan

std::size_t candidates_of(std::size_t rows) {
    return std::min(rows, std::max(kMinCandidates, rows / kCandidateShare));
}
std::size_t with_room(std::size_t count) { return count + count / 4; }  // for rows that turn out to be as old

}  // namespace

Eviction::Eviction(const std::string& policy, std::uint32_t ttl, std::uint32_t num_buckets)
    : lfu_(policy == "lfu"), ttl_(ttl), buckets_(num_buckets) {
    if (policy != "lru" && policy != "lfu") {
        throw std::invalid_argument("eviction: got '" + policy + "', expected 'lru' or 'lfu'");
    }
    if (lfu_ && ttl != 0) {
        throw std::invalid_argument("ttl: got " + std::to_string(ttl) +
                                    " with eviction 'lfu', expected 0: only 'lru' knows when a row was used");
    }
}

void Eviction::restored(std::uint32_t bucket, Key key, std::uint32_t stamp, bool only_row) {
    if (lfu_) {
        std::uint32_t& age = buckets_[bucket].age;
        const std::uint32_t below = stamp == 0 ? 0 : stamp - 1;
        age = only_row ? below : std::min(age, below);
    }
    expect(bucket, key, stamp);
}

std::vector<std::uint32_t> Eviction::ages() const {
    std::vector<std::uint32_t> ages;
    ages.reserve(buckets_.size());
    for (const Bucket& bucket : buckets_) ages.push_back(bucket.age);
    return ages;
}

void Eviction::add_candidate(Bucket& bucket, Candidate row) {
    std::vector<Candidate>& list = bucket.candidates;
    if (list.empty() || !(row < list.front())) return;
    if (list.size() == list.capacity()) {  // never more memory than the scan gave it
        list.clear();
        bucket.newest = 0;
        return;
    }
    list.insert(std::upper_bound(list.begin(), list.end(), row,
                                 [](const Candidate& a, const Candidate& b) { return b < a; }),
                row);
}

void Eviction::scan(std::uint32_t bucket, const KeyIndex& index) {
    scratch_.clear();
    index.for_each(bucket, [&](KeyIndex::Entry entry) { scratch_.push_back({entry.key(), entry.stamp()}); });
    const std::size_t count = candidates_of(scratch_.size());
    const auto end = scratch_.begin() + static_cast<std::ptrdiff_t>(count);
    if (end != scratch_.end()) std::nth_element(scratch_.begin(), end, scratch_.end());
    Bucket& into = buckets_[bucket];
    into.candidates.reserve(with_room(count));
    into.candidates.assign(scratch_.begin(), end);
    std::sort(into.candidates.rbegin(), into.candidates.rend());
    into.newest = into.candidates.front().stamp;
    newest_of_all_ = std::max(newest_of_all_, into.newest);
}

KeyIndex::Entry Eviction::next(std::uint32_t bucket, const KeyIndex& index, std::uint32_t most) {
    Bucket& from = buckets_[bucket];
    while (true) {
        if (from.candidates.empty()) scan(bucket, index);
        const Candidate oldest = from.candidates.back();
        if (oldest.stamp > most) return {};  // all others are as new, or newer
        from.candidates.pop_back();
        if (from.candidates.empty()) {
            from.newest = 0;
        } else {
            prefetch_cold_line(index.home_line(bucket, from.candidates.back().key));
        }
        const KeyIndex::Entry entry = index.find(bucket, oldest.key);
        if (!entry || entry.stamp() != oldest.stamp) continue;  // used since, or gone
        if (lfu_) from.age = oldest.stamp;
        return entry;
    }
}

void Eviction::stays(std::uint32_t bucket, KeyIndex::Entry entry, std::uint32_t age) {
    Bucket& of = buckets_[bucket];
    if (of.candidates.empty()) of.newest = entry.stamp();
    of.candidates.push_back({entry.key(), entry.stamp()});  // there is room: it was on the list
    of.age = age;
}

std::size_t Eviction::candidate_bytes(std::size_t rows) {
    return with_room(candidates_of(rows)) * sizeof(Candidate);
}

std::size_t Eviction::held_bytes() const {
    std::size_t bytes = buckets_.capacity() * sizeof(Bucket) + scratch_.capacity() * sizeof(Candidate);
    for (const Bucket& bucket : buckets_) bytes += bucket.candidates.capacity() * sizeof(Candidate);
    return bytes;
}

}  // namespace persia
