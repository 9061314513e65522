#include "persia/bucket.h"

#include <algorithm>

namespace persia {
namespace {

constexpr std::size_t kMinCandidates = 64;
constexpr std::size_t kCandidateShare = 8;  // an eighth of the rows: each evicted row costs 8 rows of scan

}  // namespace

std::uint32_t Bucket::insert(Key key, std::uint32_t step, const RowLayout& layout, Arena& arena) {
    index_.reserve_one(arena);
    const std::uint32_t slot = rows_.take(layout, arena);
    index_.insert(tag_of(key), slot);
    Row* row = rows_.at(slot, layout);
    row->key = key;
    row->stamp = step;
    row->born = step;
    expect_stamp(step);
    return slot;
}

void Bucket::find_candidates(const RowLayout& layout, std::vector<Candidate>& scratch) {
    scratch.clear();
    for (std::uint32_t slot = 0; slot < rows_.end_slot(); ++slot) {
        const Row* row = rows_.at(slot, layout);
        if (row->stamp != kFreed) scratch.push_back({row->stamp, slot, row->key});
    }
    const std::size_t count =
        std::min(scratch.size(), std::max(kMinCandidates, scratch.size() / kCandidateShare));
    const auto end = scratch.begin() + static_cast<std::ptrdiff_t>(count);
    if (end != scratch.end()) std::nth_element(scratch.begin(), end, scratch.end());
    candidates_.assign(scratch.begin(), end);
    std::sort(candidates_.rbegin(), candidates_.rend());
    newest_candidate_ = candidates_.front().stamp;
}

std::uint32_t Bucket::evict(std::uint32_t capacity, const RowLayout& layout,
                            std::vector<Candidate>& scratch) {
    std::uint32_t evicted = 0;
    while (num_rows() > capacity) {
        if (candidates_.empty()) find_candidates(layout, scratch);
        const Candidate oldest = candidates_.back();
        candidates_.pop_back();
        if (!candidates_.empty()) __builtin_prefetch(rows_.at(candidates_.back().slot, layout));
        const Row* row = rows_.at(oldest.slot, layout);
        if (row->stamp != oldest.stamp || row->key != oldest.key) continue;  // used since, hence newer
        index_.erase(tag_of(oldest.key), oldest.slot);
        rows_.give_back(oldest.slot, layout);
        ++evicted;
    }
    return evicted;
}

}  // namespace persia
