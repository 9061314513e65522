#include "persia/table_config.h"

#include <algorithm>
#include <stdexcept>

namespace persia {

const TableConfig& checked(const TableConfig& config) {
    const auto refuse = [](const std::string& text) { throw std::invalid_argument(text); };
    const auto number = [](std::uint32_t value) { return std::to_string(value); };
    if (config.dim == 0 || config.dim > (1u << 20)) {
        refuse("dim: got " + number(config.dim) + ", expected 1 to 2^20");
    }
    if (config.num_buckets == 0 || (config.num_buckets & (config.num_buckets - 1)) != 0) {
        refuse("num_buckets: got " + number(config.num_buckets) + ", expected a power of two");
    }
    if (config.first_bucket > config.end_bucket || config.end_bucket > config.num_buckets) {
        refuse("buckets: got [" + number(config.first_bucket) + ", " + number(config.end_bucket) +
               "), expected a range within [0, " + number(config.num_buckets) + ")");
    }
    if (config.bucket_capacity == 0) refuse("bucket_capacity: got 0, expected at least 1 row");
    if (config.threads == 0) refuse("threads: got 0, expected at least 1");
    if (!config.disk_folder.empty() && config.full_disk_evicts && config.eviction == "lfu") {
        refuse("full_disk_evicts: got true with eviction 'lfu', which doesn't know which rows are in flight");
    }
    return config;
}

std::uint32_t num_shards(const TableConfig& config) {
    return std::max(1u, std::min(config.threads, config.buckets_here()));
}

TableConfig shard_config(const TableConfig& config, std::uint32_t shard) {
    const auto begin_of = [&](std::uint32_t i) {
        return config.first_bucket +
               static_cast<std::uint32_t>(std::uint64_t{config.buckets_here()} * i / num_shards(config));
    };
    TableConfig part = config;
    part.first_bucket = begin_of(shard);
    part.end_bucket = begin_of(shard + 1);
    const double share = static_cast<double>(part.buckets_here()) / std::max(config.buckets_here(), 1u);
    part.disk_bytes = static_cast<std::uint64_t>(share * static_cast<double>(config.disk_bytes));
    return part;
}

}  // namespace persia
