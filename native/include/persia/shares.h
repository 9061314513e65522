// Which rows of a batch each server owns, as lists of what to copy.
//
// T tables, G groups, P servers, U unique rows of a batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/aligned_array.h"
#include "persia/span.h"

namespace persia {

// Rows [begin, end) of a batch.
struct RowRange {
    std::uint32_t begin, end;
};

class Shares {
  public:
    Shares() = default;
    // server_offsets [T, P+1]: server p's rows of table t are [so[t, p], so[t, p+1]). groups [T]: the group
    // of each table, as in DedupPlan.
    Shares(Span<const std::uint32_t> server_offsets, std::size_t num_servers,
           Span<const std::uint32_t> groups);

    std::size_t num_servers() const { return num_servers_; }
    std::size_t num_groups() const { return num_groups_; }
    std::size_t num_tables() const { return num_tables_; }

    // Ascending, none empty, neighbours joined within a group: of all groups, or of one.
    Span<const RowRange> of(std::size_t server) const {
        return between(server * num_groups_, (server + 1) * num_groups_);
    }
    Span<const RowRange> of(std::size_t server, std::size_t group) const {
        return between(server * num_groups_ + group, server * num_groups_ + group + 1);
    }
    // The batch's rows of a group are [group_begin(g), group_begin(g + 1)).
    std::uint32_t group_begin(std::size_t group) const { return group_offsets_[group]; }
    // [T] the server's rows of each table.
    Span<const std::uint32_t> counts(std::size_t server) const {
        return {counts_.data() + server * num_tables_, num_tables_};
    }

  private:
    Span<const RowRange> between(std::size_t first, std::size_t last) const {
        return {ranges_.data() + ends_[first], ends_[last] - ends_[first]};
    }

    std::size_t num_servers_ = 0, num_groups_ = 0, num_tables_ = 0;
    AlignedArray<RowRange> ranges_;     // by server, then group
    AlignedArray<std::uint32_t> ends_;  // [P*G+1] of each (server, group) in `ranges_`; the first is 0
    AlignedArray<std::uint32_t> group_offsets_;  // [G+1]
    AlignedArray<std::uint32_t> counts_;         // [P, T]
};

// Where the rows of a batch lie if only some of them are there: `before` [U+1] says how many of those lie
// before each row; all are there if it's null.
struct Travelling {
    const std::uint32_t* before;
    std::uint32_t place(std::uint32_t row) const { return before == nullptr ? row : before[row]; }
};

// How many rows of these ranges are there. Throws std::invalid_argument if one leaves [place(first),
// place(last)).
std::size_t count_rows(Span<const RowRange> ranges, Travelling rows, std::uint32_t first, std::uint32_t last);

// Copies rows that lie one after the other in `from` to their places in `to`, which begins with row `first`.
void scatter_rows(Span<const RowRange> ranges, Travelling rows, std::uint32_t first, std::size_t row_bytes,
                  const std::uint8_t* from, std::uint8_t* to);

}  // namespace persia
