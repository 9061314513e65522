// How ColdStore closes gaps: extents that few rows are left in.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "persia/cold_store.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace persia {
namespace {

// The rows moved in a step are at most those of so many extents, and so many for each that was appended: one
// keeps gaps from outgrowing the rows, others close those that a snapshot has left.
constexpr std::size_t kMovedExtents = 32, kMovedShare = 2;
constexpr std::uint32_t kLeastLive = 3;  // an extent is sparse when less than such a part of its rows is left
constexpr std::size_t kLeastHoles = 1 << 20;
constexpr std::size_t kAhead = 8;  // rows whose index lines are asked for before they are moved

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
    } else if (!extent.gapped && is_gapped(number)) {
        extent.gapped = true;
        gapped_.push_back(number);
    }
}

// Half empty, or adopted and with any gap.
bool ColdStore::is_gapped(std::uint32_t number) const {
    const Extent& extent = extents_[number];
    const std::uint32_t factor = is_adopted(number) ? 1 : 2;
    return extent.live != 0 && extent.live * factor < extent.used;
}

bool ColdStore::move_gapped() {
    while (!gapped_.empty()) {
        const std::uint32_t number = gapped_.back();
        gapped_.pop_back();
        extents_[number].gapped = false;
        if (!is_gapped(number) || is_open(number)) continue;  // since it was noted
        note_sparse(number);
        return move_sparse();
    }
    return false;
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
    for (std::uint32_t i = 0; i < used; ++i) {
        if (i + kAhead < used) index.prefetch(read_at<Key>(record_at(i + kAhead)));
        const Key key = read_at<Key>(record_at(i));
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

void ColdStore::make_room() {
    const auto full = [&] { return file_bytes() + file_.extent_bytes() > capacity_bytes_; };
    while (full() && !marked_ && (move_sparse() || move_gapped())) {
    }
    if (!full() || marked_) return;  // a snapshot soon ends, and gaps can be closed again
    throw DiskFull("the disk tier in " + file_.folder() + " is full: this part of a table has " +
                   std::to_string(size_) + " rows there in " + std::to_string(file_bytes()) + " bytes, of " +
                   std::to_string(capacity_bytes_) +
                   " allowed; raise the table's disk.capacity, or its capacity");
}

}  // namespace persia
