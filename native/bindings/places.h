// Where the rows of servers' answers go.
#pragma once

#include <vector>

#include "persia/shares.h"
#include "ring_arrays.h"

namespace persia_bindings {

// Arrays as they lie in a record or in NumPy: what they are, and where.
struct Body {
    struct Part {
        ArrayEntry entry;
        const std::uint8_t* data;
    };

    // RingError for a damaged directory.
    Body(const std::uint8_t* body, std::uint64_t body_bytes, std::uint64_t num_arrays) {
        each_array(body, body_bytes, num_arrays, [&](const ArrayEntry& entry, std::uint64_t begin) {
            parts.push_back({entry, body + begin});
        });
    }
    explicit Body(const py::sequence& arrays) {
        for (const py::handle item : arrays) {
            const py::array array = array_of(item);
            parts.push_back(
                {entry_of(array.dtype(), shape_of(array)), static_cast<const std::uint8_t*>(array.data())});
        }
    }
    std::vector<Part> parts;
};

inline std::string describe(const ArrayEntry& entry) {
    return std::string(entry.dtype < kNames.size() ? kNames[entry.dtype] : "?") + " [" +
           std::to_string(entry.rows) +
           (entry.num_dimensions == 2 ? ", " + std::to_string(entry.columns) : "") + "]";
}

// The rows of a batch: for each group an array that servers' parts are copied to.
class Places {
  public:
    // before: None, or uint32 [U+1], if only some rows are there: see persia::Travelling.
    Places(const persia::Shares& shares, const py::sequence& arrays, const py::object& before)
        : shares_(shares), into_(arrays) {
        const std::size_t groups = shares.num_groups();
        if (into_.parts.size() != groups) {
            refuse("expected arrays of " + std::to_string(groups) + " groups, got " +
                   std::to_string(into_.parts.size()));
        }
        if (!before.is_none()) {
            const auto size = static_cast<py::ssize_t>(shares.group_begin(groups)) + 1;
            rows_.before = data_of<const std::uint32_t>(check_array(before, "before", {kUint32}, {size}));
        }
        for (std::size_t g = 0; g < groups; ++g) {
            const py::object array = arrays[g];
            const std::uint32_t there =
                rows_.place(shares.group_begin(g + 1)) - rows_.place(shares.group_begin(g));
            const ArrayEntry& entry = into_.parts[g].entry;
            if (entry.num_dimensions != 2 || entry.rows != there ||
                !py::reinterpret_borrow<py::array>(array).writeable()) {
                refuse("group " + std::to_string(g) + ": expected a writable array of " +
                       std::to_string(there) + " rows, got " + describe(entry));
            }
            bytes_ += entry.rows * row_bytes(g);
        }
    }

    std::uint64_t bytes() const { return bytes_; }

    // Needs no GIL. Throws std::invalid_argument if the server's part has other sizes, having copied nothing.
    void fill(std::size_t server, const Body& from) const {
        const std::size_t groups = shares_.num_groups();
        if (from.parts.size() != groups) {
            throw std::invalid_argument("server " + std::to_string(server) + ": expected arrays of " +
                                        std::to_string(groups) + " groups, got " +
                                        std::to_string(from.parts.size()));
        }
        for (std::size_t g = 0; g < groups; ++g) {
            const ArrayEntry &entry = from.parts[g].entry, &to = into_.parts[g].entry;
            const std::size_t rows = persia::count_rows(shares_.of(server, g), rows_, shares_.group_begin(g),
                                                        shares_.group_begin(g + 1));
            if (entry.dtype != to.dtype || entry.num_dimensions != 2 || entry.columns != to.columns ||
                entry.rows != rows) {
                throw std::invalid_argument("server " + std::to_string(server) + ", group " +
                                            std::to_string(g) + ": expected " + std::to_string(rows) +
                                            " rows for " + describe(to) + ", got " + describe(entry));
            }
        }
        for (std::size_t g = 0; g < groups; ++g) {
            persia::scatter_rows(shares_.of(server, g), rows_, shares_.group_begin(g), row_bytes(g),
                                 from.parts[g].data, const_cast<std::uint8_t*>(into_.parts[g].data));
        }
    }

  private:
    std::uint64_t row_bytes(std::size_t group) const {
        const ArrayEntry& entry = into_.parts[group].entry;
        return entry.columns * kBytes[entry.dtype];
    }

    const persia::Shares& shares_;
    Body into_;
    persia::Travelling rows_{nullptr};
    std::uint64_t bytes_ = 0;
};

}  // namespace persia_bindings
