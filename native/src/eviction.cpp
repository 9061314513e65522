#include "persia/eviction.h"

#include <algorithm>
#include <stdexcept>

namespace persia {
namespace {

constexpr std::size_t kMinCandidates = 64;
constexpr std::size_t kCandidateShare = 20;  // of the rows: each row that goes costs 20 rows of scan

// Rows that one step used are spared while they are fewer than such a part of a bucket's rows.
constexpr std::size_t kLeastOnce = 8, kLeastRoom = 16;
// When there is no room for more: where those that are done with are such a part, no row is looked at.
constexpr std::size_t kDoneShare = 4;
constexpr std::size_t kAhead = 4;  // rows whose memory is asked for before they are looked at

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
    if (into.candidates.empty()) return;  // no row is there
    into.newest = into.candidates.front().stamp;
    newest_of_all_ = std::max(newest_of_all_, into.newest);
}

KeyIndex::Entry Eviction::next(std::uint32_t bucket, const KeyIndex& index, std::uint32_t most) {
    Bucket& from = buckets_[bucket];
    while (true) {
        if (from.candidates.empty()) scan(bucket, index);
        if (from.candidates.empty()) return {};
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

void Eviction::came(std::uint32_t bucket, Key key, std::uint32_t step, const KeyIndex& index) {
    if (once_.empty()) return;
    Once& of = once_[bucket];
    if (of.rows.size() == of.rows.capacity() && of.first * kDoneShare >= of.rows.size() && of.first != 0) {
        of.rows.erase(of.rows.begin(), of.rows.begin() + static_cast<std::ptrdiff_t>(of.first));
        of.first = 0;
    } else if (of.rows.size() == of.rows.capacity()) {
        forget_used(of, bucket, index);
        const std::size_t size = of.rows.size(), room = of.rows.capacity();
        if (size * 4 < room)
            std::vector<Candidate>(of.rows).swap(of.rows);  // which has no more room than it needs
        if (size * 4 < room || size * 4 >= room * 3) of.rows.reserve(with_room(size) + kLeastRoom);
    }
    of.rows.push_back({key, step});
}

void Eviction::forget_used(Once& of, std::uint32_t bucket, const KeyIndex& index) {
    const auto used = [&](const Candidate& row) {
        const KeyIndex::Entry entry = index.find(bucket, row.key);
        return !entry || entry.stamp() != row.stamp;
    };
    for (std::size_t i = of.first; i < of.rows.size(); ++i) {
        prefetch_cold_line(index.home_line(bucket, of.rows[i].key));
    }
    const auto begin = of.rows.begin() + static_cast<std::ptrdiff_t>(of.first);
    const auto end = std::remove_if(begin, of.rows.end(), used);
    of.rows.erase(end, of.rows.end());
    of.rows.erase(of.rows.begin(), begin);
    of.first = 0;
}

KeyIndex::Entry Eviction::next_used(std::uint32_t bucket, const KeyIndex& index, std::uint32_t most) {
    if (once_.empty()) return next(bucket, index, most);
    Once& of = once_[bucket];
    while (of.rows.size() - of.first > index.size(bucket) / kLeastOnce) {
        const std::size_t later = of.first + kAhead;
        if (later < of.rows.size()) prefetch_cold_line(index.home_line(bucket, of.rows[later].key));
        const Candidate row = of.rows[of.first];
        const KeyIndex::Entry entry = index.find(bucket, row.key);
        const bool once = entry && entry.stamp() == row.stamp;  // else it was used again, or is gone
        if (once && row.stamp > most) break;                    // and so are those behind
        ++of.first;
        if (once) return entry;
    }
    return next(bucket, index, most);
}

void Eviction::ask_for_lists(std::uint32_t bucket, std::size_t count) const {
    if (!once_.empty() && once_[bucket].first < once_[bucket].rows.size()) {
        prefetch_cold(&once_[bucket].rows[once_[bucket].first], (count + kAhead) * sizeof(Candidate));
    }
    const std::vector<Candidate>& list = buckets_[bucket].candidates;
    if (!list.empty()) prefetch_cold_line(&list.back());
}

void Eviction::ask_for_named(std::uint32_t bucket, std::size_t count, const KeyIndex& index) const {
    const auto ask = [&](const Candidate& row) { prefetch_cold_line(index.home_line(bucket, row.key)); };
    if (!once_.empty()) {
        const Once& of = once_[bucket];
        const std::size_t end = std::min(of.rows.size(), of.first + count + kAhead);
        for (std::size_t i = of.first; i < end; ++i) ask(of.rows[i]);
    }
    const std::vector<Candidate>& list = buckets_[bucket].candidates;
    for (std::size_t i = 0; i < std::min(list.size(), kAhead); ++i) ask(list[list.size() - 1 - i]);
}

void Eviction::stays(std::uint32_t bucket, KeyIndex::Entry entry, std::uint32_t age) {
    if (!once_.empty()) {
        Once& from = once_[bucket];
        for (std::size_t i = from.first; i-- > 0;) {  // between them may be some that were used
            if (from.rows[i].key != entry.key() || from.rows[i].stamp != entry.stamp()) continue;
            from.first = i;
            return;
        }
    }
    Bucket& of = buckets_[bucket];
    if (of.candidates.empty()) of.newest = entry.stamp();
    of.candidates.push_back({entry.key(), entry.stamp()});  // there is room: it was on the list
    of.age = age;
}

std::size_t Eviction::candidate_bytes(std::size_t rows) {
    return with_room(candidates_of(rows)) * sizeof(Candidate);
}

std::size_t Eviction::once_bytes(std::size_t rows) {
    return sizeof(Once) + (with_room(rows) + kLeastRoom) * sizeof(Candidate);
}

std::size_t Eviction::held_bytes() const {
    std::size_t bytes = buckets_.capacity() * sizeof(Bucket) + scratch_.capacity() * sizeof(Candidate);
    for (const Bucket& bucket : buckets_) bytes += bucket.candidates.capacity() * sizeof(Candidate);
    bytes += once_.capacity() * sizeof(Once);
    for (const Once& once : once_) bytes += once.rows.capacity() * sizeof(Candidate);
    return bytes;
}

}  // namespace persia
