// What memory allows: the least that any table must do, at places that are known beforehand. For benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/arena.h"
#include "persia/span.h"

namespace persia {

class MemoryLimits {
  public:
    // Rows of `row_bytes` with `state_bytes` of state each, and an index entry of 16 bytes per row, on huge
    // pages, all written once.
    MemoryLimits(std::uint64_t num_rows, std::size_t row_bytes, std::size_t state_bytes);

    // One touch: copies the rows at `places` [n] to `out` [n, row_bytes].
    void gather(Span<const std::uint64_t> places, Span<std::byte> out) const;
    // Two touches: also reads the index entry at another place for each row. Returns something that depends
    // on what was read.
    std::uint64_t gather_with_entries(Span<const std::uint64_t> places, Span<const std::uint64_t> entries,
                                      Span<std::byte> out) const;
    // Reads, changes and writes the rows and their states, with `gradients` [n, row_bytes] read in order.
    void update(Span<const std::uint64_t> places, Span<const std::byte> gradients);

    std::uint64_t num_rows() const { return num_rows_; }
    std::size_t row_bytes() const { return row_bytes_; }

  private:
    struct Entry {
        std::uint64_t key;
        std::uint64_t value;
    };

    std::uint64_t num_rows_;
    std::size_t row_bytes_;
    std::size_t state_bytes_;
    Arena arena_;
    std::byte* rows_;
    std::byte* states_;
    Entry* entries_;
};

}  // namespace persia
