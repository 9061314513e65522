// What a table shard remembers while its rows of one moment, the mark, are copied bucket by bucket.
//
// Rows go on changing meanwhile. Before the first change to a row of a bucket that wasn't copied yet, its old
// copy is kept aside. A slot is *settled* when the row that lay there at the mark needs no more care: it was
// kept aside, or there was none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/key.h"

namespace persia {

class Snapshot {
  public:
    struct Kept {  // points into what is kept, until the bucket is released
        Key key;
        std::uint32_t stamp;
        const std::byte* weights;
        const std::byte* state;
    };

    Snapshot(std::size_t weight_bytes, std::size_t state_bytes)
        : weight_bytes_(weight_bytes),
          state_bytes_(state_bytes),
          record_bytes_((16 + weight_bytes + state_bytes + 7) / 8 * 8) {}

    bool active() const { return active_; }
    // The mark: slots from end_slot on are given to rows that come later.
    void begin(std::uint32_t num_buckets, std::uint32_t end_slot);
    void end();  // also of one that was not finished

    bool copied(std::uint32_t bucket) const { return copied_[bucket]; }
    bool settled(std::uint32_t slot) const {
        return slot >= end_slot_ || (settled_[slot >> 6] >> (slot & 63) & 1) != 0;
    }
    void settle(std::uint32_t slot) {
        if (slot < end_slot_) settled_[slot >> 6] |= std::uint64_t{1} << (slot & 63);
    }
    void prefetch_settled(std::uint32_t slot) const {
        if (slot < end_slot_) __builtin_prefetch(&settled_[slot >> 6]);
    }
    // Keeps a row aside and settles its slot.
    void keep(std::uint32_t bucket, Key key, std::uint32_t stamp, std::uint32_t slot,
              const std::byte* weights, const std::byte* state);

    template <class Visit>
    void for_each_kept(std::uint32_t bucket, Visit&& visit) const {
        const std::vector<std::byte>& records = kept_[bucket];
        for (std::size_t at = 0; at < records.size(); at += record_bytes_) visit(read(&records[at]));
    }
    // The bucket has been copied: what was kept of it goes, and its rows need no more care.
    void release(std::uint32_t bucket);

    std::size_t kept_bytes() const { return kept_bytes_; }
    std::size_t held_bytes() const;

  private:
    Kept read(const std::byte* record) const;

    std::size_t weight_bytes_;
    std::size_t state_bytes_;
    std::size_t record_bytes_;
    bool active_ = false;
    std::uint32_t end_slot_ = 0;
    std::vector<std::uint64_t> settled_;  // a bit a slot
    std::vector<bool> copied_;
    std::vector<std::vector<std::byte>> kept_;  // by bucket: key, stamp, weights, state
    std::size_t kept_bytes_ = 0;
};

}  // namespace persia
