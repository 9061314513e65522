#include "persia/bucket_index.h"

#include <algorithm>
#include <stdexcept>

namespace persia {

std::uint64_t BucketIndex::empty_[1] = {0};

void BucketIndex::put(std::uint64_t entry) {
    std::uint32_t at = static_cast<std::uint32_t>(entry >> 32) & mask_;
    while (entries_[at] != 0) at = (at + 1) & mask_;
    entries_[at] = entry;
}

void BucketIndex::grow(Arena& arena) {
    const std::uint64_t old_count = limit_ == 0 ? 0 : std::uint64_t{mask_} + 1;
    const std::uint64_t count = std::max<std::uint64_t>(kFirstSize, 2 * old_count);
    if (count > std::uint64_t{1} << 31) throw std::length_error("a table's bucket has more than 2^30 rows");
    std::uint64_t* const old = entries_;
    entries_ = static_cast<std::uint64_t*>(arena.allocate(count * sizeof(*entries_)));
    std::fill_n(entries_, count, std::uint64_t{0});
    mask_ = static_cast<std::uint32_t>(count - 1);
    limit_ = static_cast<std::uint32_t>(count / 8 * 7);
    for (std::uint64_t at = 0; at < old_count; ++at) {
        if (old[at] != 0) put(old[at]);
    }
    if (old_count != 0) arena.release(old, old_count * sizeof(*old));
}

void BucketIndex::insert(std::uint32_t tag, std::uint32_t slot) {
    put(entry_of(tag, slot));
    ++size_;
}

void BucketIndex::erase(std::uint32_t tag, std::uint32_t slot) {
    const std::uint64_t entry = entry_of(tag, slot);
    std::uint32_t hole = tag & mask_;
    while (entries_[hole] != entry) hole = (hole + 1) & mask_;
    // Backward shift: an entry after the hole moves into it unless that would put it before its home.
    for (std::uint32_t at = (hole + 1) & mask_; entries_[at] != 0; at = (at + 1) & mask_) {
        const std::uint32_t home = static_cast<std::uint32_t>(entries_[at] >> 32) & mask_;
        if (((at - home) & mask_) >= ((at - hole) & mask_)) {
            entries_[hole] = entries_[at];
            hole = at;
        }
    }
    entries_[hole] = 0;
    --size_;
}

}  // namespace persia
