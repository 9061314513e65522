// ColdStore's gaps, which rows leave that went, and holes in memory.
#include <algorithm>
#include <cstring>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "persia/cold_store.h"

namespace persia {
namespace {

// The rows moved in a step are at most those of so many extents, and so many for each that was appended: one
// keeps gaps from outgrowing the rows, others close those that a snapshot has left.
constexpr std::size_t kMovedExtents = 32, kMovedShare = 2;
constexpr std::uint32_t kLeastLive = 3;  // an extent is sparse when less than such a part of its rows is left
constexpr std::size_t kLeastHoles = 1 << 20;
constexpr std::uint32_t kAhead = 8;  // records whose index lines are asked for before they are looked at

}  // namespace

void ColdStore::check_sparse(std::uint32_t number) {
    Extent& extent = extents_[number];
    if (extent.live == 0) {
        std::vector<std::uint32_t>& extents = buckets_[extent.bucket].extents;
        *std::find(extents.begin(), extents.end(), number) = extents.back();
        extents.pop_back();
        extent.sparse = false;
        free_.push_back(number);
        if (is_adopted(number)) {
            leave_file(number);
        } else {
            --in_use_;
        }
    } else if (extent.live * kLeastLive < extent.used) {
        note_sparse(number);
    }
}

void ColdStore::note_sparse(std::uint32_t number) {
    if (extents_[number].sparse) return;
    extents_[number].sparse = true;
    sparse_.push_back(number);
}

bool ColdStore::move_sparse() {
    while (!sparse_.empty() && !extents_[sparse_.back()].sparse) sparse_.pop_back();  // freed meanwhile
    if (sparse_.empty()) return false;
    const std::uint32_t number = sparse_.back();
    sparse_.pop_back();
    load(number, move_room_);
    const std::uint32_t bucket = extents_[number].bucket, used = extents_[number].used;
    ColdIndex& index = buckets_[bucket].index;
    const auto record_at = [&](std::uint32_t i) { return move_room_.data() + i * record_bytes_; };
    const auto key_at = [&](std::uint32_t i) {
        Key key;
        std::memcpy(&key, record_at(i), sizeof key);
        return key;
    };
    for (std::uint32_t i = 0; i < used; ++i) {
        if (i + kAhead < used) index.prefetch(key_at(i + kAhead));
        const Key key = key_at(i);
        if (!index.contains(key, place_of(number, i))) continue;
        const Row row = row_at(record_at(i), place_of(number, i));
        try {
            std::memcpy(next_record(bucket), record_at(i), record_bytes_);
            index.move(row.key, row.place, put(bucket));
        } catch (const DiskFull&) {
            sparse_.push_back(number);
            throw;
        }
        --extents_[number].live;
        ++moved_;
    }
    // A row is left whose key isn't as it was written, which this says.
    for (std::uint32_t i = 0; extents_[number].live != 0 && i < used; ++i) {
        row_at(record_at(i), place_of(number, i));
    }
    check_sparse(number);
    return true;
}

// The indexes of buckets grow in turns, and each leaves a hole in the heap that is too small for the next:
// together as much as they take by the time that all have grown. Holes are given back when they are a byte a
// row.
void ColdStore::give_back_holes() {
    if (outgrown_ < std::max<std::uint64_t>(kLeastHoles, size_)) return;
    outgrown_ = 0;
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

void ColdStore::tidy() {
    give_back_holes();
    const std::uint64_t appended = appended_ - tidied_;
    tidied_ = appended_;
    if (marked_) return;
    const std::uint64_t most = moved_ + kMovedShare * appended + kMovedExtents * extent_rows_;
    while (moved_ < most && move_sparse()) {
    }
}

}  // namespace persia
