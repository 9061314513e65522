// Which rows of a table shard changed or went since they were last asked for, for a service that follows.
//
// A row is noted once, whatever changes it; a row that came and went is among those that went.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "persia/key.h"
#include "persia/served_rows.h"

namespace persia {

struct ChangedRows {
    std::vector<Key> keys;        // in any order; one may be there twice
    std::vector<std::byte> rows;  // [n, bytes_of(format, dim)]
    std::vector<Key> removed;     // first these went, then `keys` got their rows
};

class Changes {
  public:
    bool noted() const { return noted_; }
    void begin() {
        noted_ = true;
        take();
    }
    void changed(Key key, std::uint32_t slot) {
        const std::size_t word = slot >> 6;
        if (word >= slots_.size()) slots_.resize(word + word / 8 + 1024);
        const std::uint64_t bit = std::uint64_t{1} << (slot & 63);
        if ((slots_[word] & bit) != 0) return;
        slots_[word] |= bit;
        keys_.push_back(key);
    }
    // The slot's next row is another one.
    void removed(Key key, std::uint32_t slot) {
        moved(slot);
        removed_.push_back(key);
    }
    // The same of a row that is elsewhere now.
    void moved(std::uint32_t slot) {
        const std::size_t word = slot >> 6;
        if (word < slots_.size()) slots_[word] &= ~(std::uint64_t{1} << (slot & 63));
    }
    void removed_before(Key key) { removed_.push_back(key); }
    void changed_before(Key key) { keys_.push_back(key); }
    // Keys that changed and keys that went; some of the first may have gone since.
    std::pair<std::vector<Key>, std::vector<Key>> take() {
        slots_.assign(slots_.size(), 0);
        return {std::exchange(keys_, {}), std::exchange(removed_, {})};
    }
    std::size_t held_bytes() const {
        return slots_.capacity() * sizeof(slots_[0]) + (keys_.capacity() + removed_.capacity()) * sizeof(Key);
    }

  private:
    bool noted_ = false;
    std::vector<std::uint64_t> slots_;  // a bit a slot: its row is among keys_
    std::vector<Key> keys_, removed_;
};

}  // namespace persia
