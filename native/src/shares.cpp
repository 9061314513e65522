#include "persia/shares.h"

#include <cstring>
#include <stdexcept>

namespace persia {

Shares::Shares(Span<const std::uint32_t> server_offsets, std::size_t num_servers,
               Span<const std::uint32_t> groups)
    : num_servers_(num_servers),
      num_groups_(groups.empty() ? 0 : groups[groups.size() - 1] + 1),
      num_tables_(groups.size()),
      ranges_(num_servers * num_tables_),
      ends_(num_servers * num_groups_ + 1),
      group_offsets_(num_groups_ + 1),
      counts_(num_servers * num_tables_) {
    group_offsets_[0] = 0;
    for (std::size_t t = 0; t < num_tables_; ++t) {
        group_offsets_[groups[t] + 1] = server_offsets[t * (num_servers + 1) + num_servers];
    }
    std::uint32_t count = 0;
    ends_[0] = 0;
    for (std::size_t p = 0; p < num_servers; ++p) {
        std::uint32_t* const counts = counts_.data() + p * num_tables_;
        std::uint32_t first = count;
        for (std::size_t t = 0; t < num_tables_; ++t) {
            const std::uint32_t* const offsets = server_offsets.data() + t * (num_servers + 1) + p;
            const RowRange range{offsets[0], offsets[1]};
            counts[t] = range.end - range.begin;
            if (range.begin != range.end) {
                if (count > first && ranges_[count - 1].end == range.begin) {
                    ranges_[count - 1].end = range.end;
                } else {
                    ranges_[count++] = range;
                }
            }
            if (t + 1 == num_tables_ || groups[t + 1] != groups[t]) {
                ends_[p * num_groups_ + groups[t] + 1] = count;
                first = count;
            }
        }
    }
}

std::size_t count_rows(Span<const RowRange> ranges, Travelling rows, std::uint32_t first,
                       std::uint32_t last) {
    std::uint32_t least = rows.place(first);
    std::size_t count = 0;
    for (const RowRange& range : ranges) {
        const std::uint32_t begin = rows.place(range.begin), end = rows.place(range.end);
        if (begin < least || end < begin || end > rows.place(last)) {
            throw std::invalid_argument("before: expected numbers that don't fall");
        }
        count += end - begin;
        least = end;
    }
    return count;
}

void scatter_rows(Span<const RowRange> ranges, Travelling rows, std::uint32_t first, std::size_t row_bytes,
                  const std::uint8_t* from, std::uint8_t* to) {
    const std::uint32_t start = rows.place(first);
    for (const RowRange& range : ranges) {
        const std::uint32_t begin = rows.place(range.begin), end = rows.place(range.end);
        const std::size_t bytes = (end - begin) * row_bytes;
        if (bytes != 0) std::memcpy(to + (begin - start) * row_bytes, from, bytes);
        from += bytes;
    }
}

}  // namespace persia
