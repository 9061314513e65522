// ColdStore's rows that checkpoints have copies of.
#include <algorithm>
#include <map>

#include "persia/cold_store.h"

namespace persia {

void ColdStore::make_copies() {
    const std::size_t extents = extents_.size();
    if (extents > copies_.capacity()) {  // by itself a vector doubles
        copies_.reserve(extents + extents / 16);
        copied_.reserve((extents + extents / 16) * words_per_extent());
    }
    copies_.resize(extents);
    copied_.resize(extents * words_per_extent());
}

void ColdStore::note_copied(Place place, bool copied) {
    const auto i = static_cast<std::uint32_t>(place % extent_rows_);
    std::uint64_t& word = copied_[place / extent_rows_ * words_per_extent() + i / 64];
    const std::uint64_t bit = std::uint64_t{1} << i % 64;
    word = copied ? word | bit : word & ~bit;
}

std::uint32_t ColdStore::copied_before(Place place) const {
    const auto i = static_cast<std::uint32_t>(place % extent_rows_);
    const std::uint64_t* const words = &copied_[place / extent_rows_ * words_per_extent()];
    const std::uint64_t below = (std::uint64_t{1} << i % 64) - 1;
    int rows = __builtin_popcountll(words[i / 64] & below);
    for (std::uint32_t word = 0; word < i / 64; ++word) rows += __builtin_popcountll(words[word]);
    return static_cast<std::uint32_t>(rows);
}

void ColdStore::keep_copies(Span<const std::uint32_t> files) {
    for (Copy& copy : copies_) {
        if (std::find(files.begin(), files.end(), copy.file) == files.end()) copy = {};
    }
}

void ColdStore::add_copied(std::map<std::uint32_t, std::uint64_t>& rows) const {
    for (std::size_t i = 0; i < copies_.size(); ++i) {
        if (copies_[i].file != 0) rows[copies_[i].file] += extents_[i].live;
    }
}

}  // namespace persia
