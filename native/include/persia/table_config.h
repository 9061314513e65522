// What a table is made with.
#pragma once

#include <cstdint>
#include <string>

#include "persia/admission.h"
#include "persia/optimizer.h"

namespace persia {

struct TableConfig {
    std::uint32_t dim = 0;
    std::string optimizer;
    OptimizerOptions options;
    double value_bound = 0;  // RowUpdate's
    double clip_norm = 0;    // RowUpdate's
    std::string storage = "fp32";
    std::string state_storage = "fp32";
    std::string init;  // RowInit's kind, a and b
    double init_a = 0;
    double init_b = 0;
    std::uint64_t seed = 0;
    std::uint32_t num_buckets = 1;  // of all servers; a power of two
    std::uint32_t first_bucket = 0;
    std::uint32_t end_bucket = 1;
    std::uint32_t bucket_capacity = 1;  // rows
    std::string eviction = "lru";
    std::uint32_t ttl = 0;  // steps; 0: none
    AdmissionOptions admission;
    std::string disk_folder;        // for rows beyond the capacity; empty: they are evicted
    std::uint64_t disk_bytes = 0;   // that they may take there
    bool full_disk_evicts = false;  // what it can't take; else that stays in memory
    std::uint32_t threads = 1;

    std::uint32_t buckets_here() const { return end_bucket - first_bucket; }
};

// The same configuration; throws std::invalid_argument for numbers that are out of range or contradict each
// other. Names and options are checked by the parts of a table that use them.
const TableConfig& checked(const TableConfig& config);

// The part of a table that one of its threads works on.
std::uint32_t num_shards(const TableConfig& config);
TableConfig shard_config(const TableConfig& config, std::uint32_t shard);

}  // namespace persia
