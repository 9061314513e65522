#include "persia/cold_index.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace persia {
namespace {

constexpr std::size_t kLeast = 8;
constexpr std::size_t kBehind = 16;  // entries behind the homes, and so many more when those are used up
// Grown by a sixteenth beyond five sixths: 9.6 to 10.2 bytes a row, at the price of moving each some 16
// times.
constexpr bool too_full(std::size_t rows, std::size_t homes) { return rows * 6 >= homes * 5; }

void check_place(ColdIndex::Place place) {
    if (place < ColdIndex::kMostPlaces) return;
    throw std::length_error("place " + std::to_string(place) +
                            " is beyond what a disk tier's index can hold");
}

}  // namespace

void ColdIndex::put(Entry entry) {
    for (std::size_t at = find(entry); entry != kEmpty; ++at) std::swap(entries_[at], entry);
    if (entries_[entries_.size() - 2] == kEmpty) return;
    entries_.reserve(entries_.size() + kBehind);
    entries_.resize(entries_.size() + kBehind, kEmpty);
}

void ColdIndex::take_out(std::size_t at) {
    for (; entries_[at + 1] != kEmpty && home(entries_[at + 1] >> kPlaceBits) <= at; ++at) {
        entries_[at] = entries_[at + 1];
    }
    entries_[at] = kEmpty;
}

void ColdIndex::resize(std::size_t homes) {
    homes_ = homes;
    const std::vector<Entry> old = std::exchange(entries_, std::vector<Entry>(homes + kBehind, kEmpty));
    std::size_t free = 0;  // all before are less
    for (const Entry entry : old) {
        if (entry == kEmpty) continue;
        free = std::max(free, home(entry >> kPlaceBits));
        if (free + 1 >= entries_.size()) {
            entries_.reserve(free + kBehind);
            entries_.resize(free + kBehind, kEmpty);
        }
        entries_[free++] = entry;
    }
    if (free + 1 >= entries_.size()) entries_.resize(free + 2, kEmpty);
}

void ColdIndex::reserve(std::size_t more) {
    const std::size_t homes = (size_ + more) * 6 / 5 + kLeast;
    if (homes > homes_ + homes_ / 16) resize(homes);
}

void ColdIndex::insert(Key key, Place place) {
    check_place(place);
    if (homes_ < kLeast || too_full(size_ + 1, homes_)) resize(homes_ + homes_ / 16 + kLeast);
    put(entry_of(key, place));
    ++size_;
}

void ColdIndex::erase(Key key, Place place) {
    const Entry entry = entry_of(key, place);
    const std::size_t at = find(entry);
    if (entries_[at] != entry) throw std::logic_error("a cold row that isn't in the index can't go");
    take_out(at);
    --size_;
    if (homes_ > 8 * kLeast && size_ * 2 < homes_) resize(size_ + size_ / 3 + kLeast);
}

void ColdIndex::move(Key key, Place from, Place to) {
    check_place(to);
    const Entry entry = entry_of(key, from);
    const std::size_t at = find(entry);
    if (entries_[at] != entry) throw std::logic_error("a cold row that isn't in the index can't move");
    const Entry moved = entry_of(key, to);
    if ((at == 0 || entries_[at - 1] < moved || entries_[at - 1] == kEmpty) && moved < entries_[at + 1]) {
        entries_[at] = moved;  // there is no other with these bits on the wrong side
        return;
    }
    take_out(at);
    put(moved);
}

}  // namespace persia
