// key -> slot inside one bucket: open addressing with linear probing, no tombstones.
//
// An entry is 8 bytes, (tag << 32) | (slot + 1) with tag = the key's low 32 bits; 0 is empty. The full key is
// in the row, and the caller confirms with it: rows are touched anyway, and a table of 8-byte entries stays
// in the cache twice as long. The tag is enough to re-insert an entry, so growing and erasing never touch
// rows.
#pragma once

#include <cstdint>

#include "persia/arena.h"

namespace persia {

class BucketIndex {
  public:
    static constexpr std::uint32_t kNone = UINT32_MAX;

    std::uint32_t size() const { return size_; }
    std::uint64_t bytes() const { return limit_ == 0 ? 0 : (std::uint64_t{mask_} + 1) * sizeof(*entries_); }

    void prefetch(std::uint32_t tag) const { __builtin_prefetch(&entries_[tag & mask_]); }

    // The first slot with this tag for which confirm(slot) holds, or kNone.
    template <class Confirm>
    std::uint32_t find(std::uint32_t tag, Confirm&& confirm) const {
        for (std::uint32_t at = tag & mask_;; at = (at + 1) & mask_) {
            const std::uint64_t entry = entries_[at];
            if (entry == 0) return kNone;
            if (entry >> 32 == tag && confirm(slot_of(entry))) return slot_of(entry);
        }
    }

    template <class Visit>
    void for_each_slot(Visit&& visit) const {
        if (size_ == 0) return;
        for (std::uint64_t at = 0; at <= mask_; ++at) {
            if (entries_[at] != 0) visit(slot_of(entries_[at]));
        }
    }

    // Makes room for one more entry; the only call that can throw.
    void reserve_one(Arena& arena) {
        if (size_ == limit_) grow(arena);
    }
    // Precondition: room was reserved and the slot isn't here.
    void insert(std::uint32_t tag, std::uint32_t slot);
    // Precondition: (tag, slot) is here.
    void erase(std::uint32_t tag, std::uint32_t slot);

  private:
    static constexpr std::uint32_t kFirstSize = 16;
    static std::uint64_t empty_[1];  // lets find() run on an index without memory; never written

    static std::uint32_t slot_of(std::uint64_t entry) { return static_cast<std::uint32_t>(entry) - 1; }
    static std::uint64_t entry_of(std::uint32_t tag, std::uint32_t slot) {
        return std::uint64_t{tag} << 32 | (slot + 1);
    }
    void grow(Arena& arena);
    void put(std::uint64_t entry);

    std::uint64_t* entries_ = empty_;
    std::uint32_t mask_ = 0;
    std::uint32_t size_ = 0;
    std::uint32_t limit_ = 0;  // 7/8 of the entries
};

}  // namespace persia
