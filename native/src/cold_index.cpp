#include "persia/cold_index.h"

#include <stdexcept>
#include <string>

namespace persia {
namespace {

constexpr std::size_t kLeast = 8;
// Grown by a sixteenth beyond five sixths: 9.6 to 10.2 bytes a row, at the price of moving each some 16
// times.
constexpr bool too_full(std::size_t rows, std::size_t entries) { return rows * 6 >= entries * 5; }

}  // namespace

std::size_t ColdIndex::find(Key key, Place place) const {
    const Entry wanted = entry_of(key, place);
    std::size_t at = home(wanted >> kPlaceBits);
    while (entries_[at] != 0 && entries_[at] != wanted) at = next(at);
    return at;
}

void ColdIndex::add(Entry entry) {
    std::size_t at = home(entry >> kPlaceBits);
    while (entries_[at] != 0) at = next(at);
    entries_[at] = entry;
}

void ColdIndex::resize(std::size_t entries) {
    std::vector<Entry> old(entries);
    old.swap(entries_);
    for (const Entry entry : old) {
        if (entry != 0) add(entry);
    }
}

void ColdIndex::reserve(std::size_t more) {
    const std::size_t entries = (size_ + more) * 6 / 5 + kLeast;
    if (entries > entries_.size() + entries_.size() / 16) resize(entries);
}

void ColdIndex::insert(Key key, Place place) {
    if (place >= kMostPlaces) {
        throw std::length_error("place " + std::to_string(place) +
                                " is beyond what a disk tier's index can hold");
    }
    if (entries_.size() < kLeast || too_full(size_ + 1, entries_.size())) {
        resize(entries_.size() + entries_.size() / 16 + kLeast);
    }
    add(entry_of(key, place));
    ++size_;
}

void ColdIndex::erase(Key key, Place place) {
    std::size_t gap = find(key, place);
    if (entries_[gap] == 0) throw std::logic_error("a cold row that isn't in the index can't go");
    for (std::size_t at = next(gap); entries_[at] != 0; at = next(at)) {
        const std::size_t from = home(entries_[at] >> kPlaceBits);
        const bool stays = at > gap ? from > gap && from <= at : from > gap || from <= at;
        if (stays) continue;
        entries_[gap] = entries_[at];
        gap = at;
    }
    entries_[gap] = 0;
    --size_;
    if (entries_.size() > 8 * kLeast && size_ * 2 < entries_.size()) resize(size_ + size_ / 3 + kLeast);
}

void ColdIndex::move(Key key, Place from, Place to) {
    const std::size_t at = find(key, from);
    if (entries_[at] == 0) throw std::logic_error("a cold row that isn't in the index can't move");
    if (to >= kMostPlaces) throw std::length_error("a disk tier's index can't hold so many places");
    entries_[at] = entry_of(key, to);
}

}  // namespace persia
