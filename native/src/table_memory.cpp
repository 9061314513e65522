#include "persia/table_memory.h"

#include <algorithm>
#include <cmath>

#include "persia/table.h"

namespace persia {
namespace {

constexpr std::size_t kBesideBytes = 24;  // 16 of an entry, at 80 to 87 % load, and 4 of the epoch

// Rows and index lines, asked for in turns as when a table grows.
std::uint64_t grown_bytes(KeyIndex& index, RowStore& store, Arena& arena, const KeyIndex::Expected& expected,
                          std::uint64_t rows) {
    for (std::uint64_t begin = 0; begin < rows; begin += store.chunk_rows()) {
        store.add_chunk(arena);
        const std::uint64_t end = std::min(rows, begin + store.chunk_rows());
        const double grown = static_cast<double>(end) / static_cast<double>(rows) * expected.lines;
        index.provide(static_cast<std::uint64_t>(std::ceil(grown)), arena);
    }
    const std::size_t page = arena.page_bytes();
    const std::uint64_t beyond =
        index.provided_bytes() - std::min(index.provided_bytes(), expected.lines_bytes);
    const std::uint64_t unwritten = store.unwritten_bytes(rows, page) + beyond / page * page;
    return arena.held_bytes() - std::min<std::uint64_t>(arena.held_bytes(), unwritten);
}

std::uint64_t shard_bytes(const TableConfig& config, std::uint64_t rows, std::uint64_t step_rows) {
    const std::uint32_t num_buckets = config.buckets_here();
    const std::uint64_t capacity = std::uint64_t{num_buckets} * config.bucket_capacity;
    const RowUpdate update(make_optimizer(config.optimizer, config.options), config.dim,
                           storage_of(config.storage), storage_of(config.state_storage), config.value_bound,
                           config.clip_norm, config.seed);
    const Eviction eviction(config.eviction, config.ttl, num_buckets);
    Arena arena(Arena::Kind::kPretended);
    RowStore store(update.weight_bytes(), update.state_bytes(), capacity);
    KeyIndex index(num_buckets, config.bucket_capacity, arena);
    // Buckets are uneven, so some evict before all are full; rows of a step come before it evicts.
    const double per_bucket = static_cast<double>(rows) / std::max(num_buckets, 1u);
    const bool full = per_bucket + std::sqrt(per_bucket) >= config.bucket_capacity;
    const KeyIndex::Expected expected = index.expect(rows, config.bucket_capacity);
    std::uint64_t bytes =
        sizeof(Shard) + grown_bytes(index, store, arena, expected, full ? rows + step_rows : rows);
    bytes += index.held_bytes() + expected.moving_bytes + store.held_bytes() + eviction.held_bytes() +
             update.held_bytes() +
             Admission::count_bytes(config.admission, num_buckets, config.bucket_capacity);
    if (!config.disk_folder.empty()) {
        bytes += ColdStore::memory_bytes(config.disk_bytes, num_buckets, config.bucket_capacity,
                                         update.weight_bytes(), update.state_bytes());
        if (!eviction.lfu() && !config.full_disk_evicts) {
            bytes += num_buckets * Eviction::once_bytes(config.bucket_capacity);
        }
    }
    if (full) bytes += num_buckets * Eviction::candidate_bytes(config.bucket_capacity);
    return bytes + Shard::step_bytes(config.dim, step_rows);
}

}  // namespace

RowBytes row_bytes(const std::string& optimizer, std::uint32_t dim, Storage weights, Storage state) {
    const Optimizer chosen = make_optimizer(optimizer, {{"lr", 0}}).optimizer;
    return {dim * bytes_of(weights), state_width(chosen, dim) * bytes_of(state) + (has_steps(chosen) ? 4 : 0),
            kBesideBytes};
}

std::uint64_t table_bytes(const TableConfig& config, std::uint64_t rows, std::uint64_t step_rows) {
    std::uint64_t bytes = sizeof(Table);
    const std::uint32_t all = std::max(checked(config).buckets_here(), 1u);
    for (std::uint32_t i = 0; i < num_shards(config); ++i) {
        const TableConfig part = shard_config(config, i);
        const auto share = [&](std::uint64_t n) {
            return static_cast<std::uint64_t>(static_cast<double>(n) * part.buckets_here() / all);
        };
        bytes += shard_bytes(part, share(rows), share(step_rows));
    }
    return bytes;
}

}  // namespace persia
