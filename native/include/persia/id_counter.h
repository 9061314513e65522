// How often each of many different 64-bit ids was met.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "persia/key.h"
#include "persia/prefetch.h"
#include "persia/span.h"

namespace persia {

// Open addressing with linear probing in a power of two of places; id and count lie together, so that an id
// that isn't in the cache costs one miss. 16 bytes a place, 30 % to 60 % of them in use.
class IdCounter {
  public:
    // Each of the ids [N] was met once more, or counts [N] (1 or more) times. std::bad_alloc leaves some of
    // them uncounted.
    void add(Span<const std::uint64_t> ids, Span<const std::uint64_t> counts = {});

    std::size_t size() const { return size_; }  // different ids
    // All ids [size()] and their counts, in no order that means anything.
    void items(Span<std::uint64_t> ids, Span<std::uint64_t> counts) const;

    // to[i] = from[i] where that id was met, else `other`. The arrays may be the same.
    void replace_unknown(Span<const std::uint64_t> from, Span<std::uint64_t> to, std::uint64_t other) const;

  private:
    struct Entry {
        std::uint64_t id;
        std::uint64_t count;  // 0: empty
    };
    static constexpr std::size_t kAhead = 32;  // ids whose places are fetched together

    // Of the low bits: ids in the order of a larger counter then come evenly over the places, not all to the
    // first.
    std::size_t home(std::uint64_t id) const { return mix(id) & (places_ - 1); }
    // Where the id is, or the empty place where it would be.
    Entry& find(std::size_t place, std::uint64_t id) const {
        while (entries_[place].count != 0 && entries_[place].id != id) place = (place + 1) & (places_ - 1);
        return entries_[place];
    }
    void reserve(std::size_t size);

    struct Free {
        void operator()(Entry* entries) const;
    };
    std::unique_ptr<Entry[], Free> entries_;
    std::size_t places_ = 0;
    std::size_t size_ = 0;
};

}  // namespace persia
