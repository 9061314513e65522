// Where the cold rows of one bucket lie on disk, at some 10 bytes a row: a hash table with linear probing
// whose entries hold 28 bits of a key's hash and the place of its row.
//
// It doesn't hold keys: what it finds for a key may be the place of another one with the same bits, which
// whoever reads the row sees. One key in 2^28 / rows of the bucket is taken for another so, at the price of a
// read in vain. An entry's home follows from its bits, in their order, and entries lie in ascending order: a
// search ends at the first greater one and not at the end of a run, and the table grows by one pass over it,
// without the keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/key.h"
#include "persia/prefetch.h"

namespace persia {

class ColdIndex {
  public:
    using Place = std::uint64_t;
    static constexpr unsigned kPlaceBits = 36;
    static constexpr Place kMostPlaces = (Place{1} << kPlaceBits) - 1;

    std::size_t size() const { return size_; }
    std::size_t held_bytes() const { return entries_.capacity() * sizeof(Entry); }

    // visit(place) for each row that may be the key's.
    template <class Visit>
    void for_each_match(Key key, Visit&& visit) const {
        if (entries_.empty()) return;
        const std::uint64_t bits = bits_of(key);
        for (std::size_t at = find(bits << kPlaceBits); entries_[at] >> kPlaceBits == bits; ++at) {
            if (entries_[at] == kEmpty) return;
            visit(entries_[at] & kMostPlaces);
        }
    }
    void prefetch(Key key) const {
        if (entries_.empty()) return;
        const Entry* const at = &entries_[home(bits_of(key))];
        prefetch_cold_line(at);
        prefetch_cold_line(at + 64 / sizeof(Entry));  // many go on there; or beyond the end
    }
    template <class Visit>
    void for_each(Visit&& visit) const {  // visit(place)
        for (const Entry entry : entries_) {
            if (entry != kEmpty) visit(entry & kMostPlaces);
        }
    }
    bool contains(Key key, Place place) const {
        const Entry wanted = entry_of(key, place);
        return !entries_.empty() && entries_[find(wanted)] == wanted;
    }

    void reserve(std::size_t more);
    // Precondition of all three: the key isn't here, or is at this place.
    void insert(Key key, Place place);
    void erase(Key key, Place place);
    void move(Key key, Place from, Place to);

  private:
    using Entry = std::uint64_t;  // the hash's bits, then the place
    static constexpr unsigned kHashBits = 64 - kPlaceBits;
    static constexpr Entry kEmpty = UINT64_MAX;  // greater than all others

    static std::uint64_t bits_of(Key key) { return mix(key) >> kPlaceBits; }
    static Entry entry_of(Key key, Place place) { return bits_of(key) << kPlaceBits | place; }
    std::size_t home(std::uint64_t bits) const { return bits * homes_ >> kHashBits; }
    // Of the first entry that isn't less, from the home of this one on: the entry's own place if it is there.
    std::size_t find(Entry entry) const {
        std::size_t at = home(entry >> kPlaceBits);
        while (entries_[at] < entry) ++at;
        return at;
    }
    void put(Entry entry);          // there is room
    void take_out(std::size_t at);  // and closes the gap
    void resize(std::size_t homes);

    // Runs that begin at the last homes go on behind them; the last entry of all is always empty.
    std::vector<Entry> entries_;
    std::size_t homes_ = 0;
    std::size_t size_ = 0;
};

}  // namespace persia
