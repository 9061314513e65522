// What rows and tables take of memory, told without making them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "persia/storage.h"
#include "persia/table_config.h"

namespace persia {

// Bytes of a row. `beside`: its entry in the index (key, slot, stamp) at full load, and its epoch.
struct RowBytes {
    std::size_t weights;
    std::size_t state;  // of the optimizer, with the count of updates
    std::size_t beside;
};

// Throws std::invalid_argument for another optimizer.
RowBytes row_bytes(const std::string& optimizer, std::uint32_t dim, Storage weights, Storage state);

// Resident memory of a table that holds `rows` rows, hashed evenly to its buckets, good to a few percent.
// `step_rows`: with so many rows in a step, working memory of push_step(), and in a full table room for the
// new ones before others are evicted. With a disk tier its index is that of a full one. Without what a
// snapshot keeps aside, and adam's powers of beta (16 bytes for each update that a row has seen, at most 1
// MiB a thread). Throws std::invalid_argument as Table's constructor does.
std::uint64_t table_bytes(const TableConfig& config, std::uint64_t rows, std::uint64_t step_rows = 0);

}  // namespace persia
