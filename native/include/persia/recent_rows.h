// Which rows of a batch its trainer still holds from the batches before: they need not travel again.
//
// The trainer keeps, for each group, the rows that travelled in a ring of rows; where is decided here. An
// index per table forgets when two keys want the same entry, so a row may travel although it is held, but
// what is said to be held is. T tables, G groups, U unique rows of a batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "persia/key.h"

namespace persia {

class RecentRows {
  public:
    static constexpr std::uint32_t kMostSteps = 31;

    struct Ring {
        std::int64_t begin;  // the first of the rows that travel now
        std::int64_t rows;   // its size; when it changes, nothing of what it held is used any more
    };

    // groups: [T] the group of each table: 0, 0, 1, ... as in DedupPlan. A row is used again for
    // `reuse_steps` steps, 1 to kMostSteps, after the one it travelled in. Throws std::invalid_argument for
    // other numbers.
    RecentRows(std::vector<std::uint32_t> groups, std::uint32_t reuse_steps);

    // The batch of `step`; steps must grow. keys [U] by table, table_offsets [T+1]. Out: wanted [U], 1 for
    // rows that must travel; places [U], where each row is in its group's ring once these are there; rings
    // [G]. Returns a mask: bit a is set if a row of a steps ago is used.
    std::uint32_t find(Keys keys, Span<const std::uint32_t> table_offsets, std::uint32_t step,
                       Span<std::uint8_t> wanted, Span<std::uint32_t> places, Span<Ring> rings);

    std::size_t num_tables() const { return groups_.size(); }
    std::size_t num_groups() const { return rings_.size(); }

  private:
    struct Entry {
        std::uint64_t key;
        std::uint32_t step;  // 0: none
        std::uint32_t place;
    };
    static constexpr std::size_t kEntries = 4;
    struct alignas(64) Line {  // of the cache: a key has one place among its entries, the oldest goes
        Entry entries[kEntries];
    };
    struct Held {
        std::uint32_t step;
        std::int64_t begin, end;
    };
    struct GroupRing {
        std::int64_t rows = 0;
        std::int64_t next = 0;
        std::uint32_t since = 1;  // entries of earlier steps are void
        std::deque<Held> held;
    };

    static std::int64_t room_for(const GroupRing& ring, std::int64_t rows);
    std::vector<Line>& index_for(std::size_t table, std::size_t num_keys);

    std::vector<std::uint32_t> groups_;
    std::uint32_t reuse_steps_;
    std::uint32_t last_step_ = 0;
    std::vector<std::vector<Line>> indexes_;  // [T] of a power of two each
    std::vector<GroupRing> rings_;            // [G]
};

}  // namespace persia
