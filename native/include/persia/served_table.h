// A table as a service reads it: parts that are sorted by key, and changes on top of them.
//
// Rows and the keys of parts lie elsewhere, in mapped files say, and must outlive the table. Many threads may
// look up at a time, while nobody adds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/key.h"
#include "persia/served_rows.h"
#include "persia/span.h"

namespace persia {

// Keys that ascend, with their rows. Cell c of `cells` [m + 1] is the place of the first key with
// (key - keys[0]) >> shift at least c, so a key is found among the few of one cell.
struct ServedPart {
    Span<const Key> keys;             // [n]
    Span<const std::uint32_t> cells;  // [m + 1]
    std::uint32_t shift;
    const std::byte* rows;  // [n, bytes_of(format, dim)]
};

// The smallest shift with at most a cell for two keys, and the cells for it. Keys must ascend.
std::uint32_t cell_shift(Span<const Key> keys);
std::vector<std::uint32_t> cells_of(Span<const Key> keys, std::uint32_t shift);

class ServedTable {
  public:
    ServedTable(RowFormat format, std::uint32_t dim)
        : format_(format), dim_(dim), row_bytes_(bytes_of(format, dim)) {}

    // Throws std::invalid_argument for cells that don't fit the keys, and for a part whose keys overlap
    // those of another part.
    void add_part(const ServedPart& part);
    // Rows that replace those there are, or are new, after some have gone. rows: [n, bytes].
    void add_changes(Keys keys, const std::byte* rows, Keys removed);

    // Rows of keys in any order to `out` [U, D]; zeros for those that aren't there.
    void lookup(Keys keys, float* out) const;
    // The same as they are kept, to `out` [U, bytes]; all must be there.
    void copy(Keys keys, std::byte* out) const;
    std::vector<Key> keys() const;  // of all rows, ascending

    std::uint32_t dim() const { return dim_; }
    std::size_t row_bytes() const { return row_bytes_; }
    std::size_t held_bytes() const { return entries_.capacity() * sizeof(Entry); }

  private:
    struct Entry {
        Key key;
        const std::byte* row;  // null: the entry is empty; kGone: the row went
    };

    void set(Key key, const std::byte* row);
    void grow(std::size_t more);
    const Entry* entry_of(Key key) const {
        std::size_t at = home(key);
        while (entries_[at].row != nullptr && entries_[at].key != key) at = (at + 1) & mask_;
        return &entries_[at];
    }
    std::size_t home(Key key) const { return tag_of(key) & mask_; }
    const ServedPart* part_of(Key key) const;
    template <class Use>
    void find(Keys keys, const Use& use) const;

    RowFormat format_;
    std::uint32_t dim_;
    std::size_t row_bytes_;
    std::vector<ServedPart> parts_;  // those with keys, ascending
    std::vector<Entry> entries_;     // of changes: hashed by key, at most 2/3 full; none without changes
    std::size_t mask_ = 0;
    std::size_t used_ = 0;
};

}  // namespace persia
