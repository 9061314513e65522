// From the ids of one batch to unique keys in the order that servers own them.
//
// T tables, G groups, F features, P servers, N ids, U unique rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "persia/aligned_array.h"
#include "persia/key.h"
#include "persia/shares.h"
#include "persia/span.h"

namespace persia {

struct DedupPlan {
    std::vector<std::uint32_t> tables;  // [F] the table of each feature
    std::vector<std::uint32_t> groups;  // [T] the group of each table: 0, 0, 1, ... non-decreasing, no gaps
    std::vector<std::uint32_t> num_buckets;          // [T] powers of two
    std::vector<std::vector<std::uint32_t>> bounds;  // [T][P+1] the servers' bucket bounds
};

// Features are visited in their order, ids in array order; "first use" is that order.
struct DedupResult {
    AlignedArray<std::uint64_t> keys;            // [U] ordered by (table, bucket, first use)
    AlignedArray<std::uint32_t> table_offsets;   // [T+1] rows of each table
    AlignedArray<std::uint32_t> server_offsets;  // [T, P+1] absolute rows of each server's part of each table
    AlignedArray<std::uint32_t> group_offsets;   // [G+1] rows of each group
    // [N] row of each id within its group, if every group has <= 65536 rows
    AlignedArray<std::uint16_t> narrow_indices;
    AlignedArray<std::uint32_t> wide_indices;     // [N] the same otherwise; the other one is empty
    AlignedArray<std::uint32_t> feature_offsets;  // [F+1] ids of each feature
    AlignedArray<std::uint32_t> row_offsets;      // [U+1] the transpose: row u is used at positions
    AlignedArray<std::uint32_t> positions;  // [N]   positions[row_offsets[u] .. row_offsets[u+1]), ascending
    bool narrow = true;
    Shares shares;  // of the servers
};

class Deduplicator {
  public:
    // Throws std::invalid_argument when the plan contradicts itself.
    explicit Deduplicator(DedupPlan plan);

    // Thread-safe; calls wait for each other because they share the scratch memory.
    DedupResult run(const std::vector<Span<const Id>>& values);

    std::size_t num_features() const { return plan_.tables.size(); }
    std::size_t num_tables() const { return plan_.groups.size(); }
    std::size_t num_servers() const { return num_servers_; }

  private:
    template <typename Small>
    struct Scratch;

    Span<const Id> first_values(std::size_t table, const std::vector<Span<const Id>>& values) const;
    void reserve(std::size_t largest_table);
    template <typename Index>
    bool sort_feature(std::size_t table, Span<const Id> ids, Span<const Id> next, Index* indices,
                      DedupResult& result);
    template <typename Small>
    void run_table(std::size_t table, const std::vector<Span<const Id>>& values, std::uint32_t num_ids,
                   DedupResult& result);
    template <typename Small>
    std::uint32_t find_unique(const Scratch<Small>& of, std::uint32_t num_ids, std::size_t num_slots,
                              const Id* next) const;
    template <typename Small>
    void sort_table(const Scratch<Small>& of, std::size_t table, std::uint32_t num_rows, DedupResult& result);
    template <typename Small, typename Index>
    void fill_features(const Scratch<Small>& of, std::size_t table, Index* indices,
                       DedupResult& result) const;

    DedupPlan plan_;
    std::size_t num_servers_;
    std::size_t num_groups_;
    std::vector<std::vector<std::uint32_t>> features_;  // [T] the features of each table

    std::mutex mutex_;
    std::vector<std::uint64_t> keys_;     // [n] of one table's ids
    std::vector<std::uint32_t> scratch_;  // see Scratch
    std::vector<std::uint32_t> starts_;   // [buckets+1], and padding
};

}  // namespace persia
