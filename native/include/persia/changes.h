// Which rows of a table shard changed or went since the last mark, for a service that follows.
//
// A row is noted once, whatever changes it; a row that came and went is among those that went. At a mark the
// rows that were noted become those to copy, and noting begins anew: a row that waits to be copied must be
// copied before it changes or goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "persia/key.h"
#include "persia/key_index.h"
#include "persia/served_rows.h"

namespace persia {

struct ChangedRows {
    std::vector<Key> keys;        // in any order
    std::vector<std::byte> rows;  // [n, row_bytes]
    std::vector<Key> removed;     // first these went, then `keys` got their rows
    std::size_t row_bytes = 0;
};

// Slots, a bit each.
class SlotSet {
  public:
    void reserve(std::uint32_t end_slot) {  // so that slots below have their bits
        const std::size_t words = (std::size_t{end_slot} + 63) >> 6;
        if (words > words_.size()) words_.resize(words + words / 8 + 1024);
    }
    bool add(std::uint32_t slot) {  // whether it wasn't there; there must be a bit for it
        const std::size_t word = slot >> 6;
        const bool is_new = (words_[word] & bit(slot)) == 0;
        words_[word] |= bit(slot);
        return is_new;
    }
    bool remove(std::uint32_t slot) {  // whether it was there
        if (!has(slot)) return false;
        words_[slot >> 6] &= ~bit(slot);
        return true;
    }
    bool has(std::uint32_t slot) const {
        const std::size_t word = slot >> 6;
        return word < words_.size() && (words_[word] & bit(slot)) != 0;
    }
    std::size_t held_bytes() const { return words_.capacity() * sizeof(words_[0]); }

  private:
    static std::uint64_t bit(std::uint32_t slot) { return std::uint64_t{1} << (slot & 63); }

    std::vector<std::uint64_t> words_;
};

class Changes {
  public:
    struct Row {
        Key key;
        std::uint32_t slot;
    };

    bool noted() const { return noted_; }
    void begin() {
        *this = {};
        noted_ = before_first_ = true;
    }
    void changed(Key key, std::uint32_t slot) {
        slots_.reserve(slot + 1);
        if (slots_.add(slot)) rows_.push_back({key, slot});
    }
    // The same of many rows, but those with kNoSlot; all slots are below end_slot. Whether a row was noted
    // before is hard to foretell, so nothing branches on it.
    void changed(Keys keys, Span<const std::uint32_t> slots, std::uint32_t end_slot) {
        slots_.reserve(end_slot);
        std::size_t count = rows_.size();
        rows_.resize(count + keys.size());
        for (std::size_t i = 0; i < keys.size(); ++i) {
            if (slots[i] == kNoSlot) continue;
            rows_[count] = {keys[i], slots[i]};
            count += slots_.add(slots[i]);
        }
        rows_.resize(count);
    }
    // A row that has no update yet: until the first mark somebody may have copied it, who had better not.
    void created(Key key) {
        if (before_first_) removed_.push_back(key);
    }
    // The slot's next row is another one.
    void removed(Key key, std::uint32_t slot) {
        slots_.remove(slot);
        removed_.push_back(key);
    }
    // The same of a row that is elsewhere now; returns whether it has changed since the mark.
    bool moved(std::uint32_t slot) { return slots_.remove(slot); }
    void removed_before(Key key) { removed_.push_back(key); }

    // Returns which keys went since the last mark. All rows of that one must have been copied.
    std::vector<Key> mark() {
        before_first_ = false;
        std::swap(rows_, to_copy_);
        std::swap(slots_, waiting_);
        rows_.clear();
        return std::exchange(removed_, {});
    }
    // The rows to copy, but for those that don't wait any more. Of two with one slot the later is meant.
    std::vector<Row>& to_copy() { return to_copy_; }
    bool waits(std::uint32_t slot) const { return waiting_.has(slot); }
    bool copied(std::uint32_t slot) { return waiting_.remove(slot); }  // whether it has waited

    std::size_t held_bytes() const {
        return slots_.held_bytes() + waiting_.held_bytes() + removed_.capacity() * sizeof(Key) +
               (rows_.capacity() + to_copy_.capacity()) * sizeof(Row);
    }

  private:
    bool noted_ = false;
    bool before_first_ = false;  // mark
    std::vector<Row> rows_, to_copy_;
    SlotSet slots_, waiting_;  // of rows_ and to_copy_: their rows are meant
    std::vector<Key> removed_;
};

}  // namespace persia
