// An array of which each server gets a part: what records to all servers are made of.
#pragma once

#include <memory>

#include "persia/shares.h"
#include "ring_arrays.h"

namespace persia_bindings {

struct Parts {
    // The rows of `array`, of which the first is row `first` of the batch; of one group, or of all.
    static constexpr std::size_t kAllGroups = SIZE_MAX;

    py::array array;
    std::shared_ptr<const persia::Shares> shares;
    std::size_t group = kAllGroups;
    std::uint32_t first = 0;
    bool counts = false;  // instead: `array` is [P, T], one row for each server
    ArrayEntry entry{};   // of a part, but for its rows
    std::uint64_t row_bytes = 0;

    persia::Span<const persia::RowRange> ranges(std::size_t server) const {
        return group == kAllGroups ? shares->of(server) : shares->of(server, group);
    }

    // Adds a server's part to a record. Needs no GIL.
    void add(std::size_t server, Message& message) const {
        ArrayEntry part = entry;
        const auto* const data = static_cast<const std::uint8_t*>(array.data());
        if (counts) {
            part.rows = shares->num_tables();
            message.layout.add(part, row_bytes);
            if (part.rows != 0) {
                message.pieces.push_back({data + server * part.rows * row_bytes,
                                          message.layout.offsets.back(), part.rows * row_bytes});
            }
            return;
        }
        part.rows = 0;
        for (const persia::RowRange& range : ranges(server)) part.rows += range.end - range.begin;
        message.layout.add(part, kBytes[part.dtype]);
        std::uint64_t offset = message.layout.offsets.back();
        if (row_bytes == 0) return;
        for (const persia::RowRange& range : ranges(server)) {
            const std::uint64_t bytes = (range.end - range.begin) * row_bytes;
            message.pieces.push_back({data + (range.begin - first) * row_bytes, offset, bytes});
            offset += bytes;
        }
    }
};

}  // namespace persia_bindings
