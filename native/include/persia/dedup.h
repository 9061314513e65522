// From the ids of one batch to unique keys in the order that servers own them.
//
// T tables, G groups, F features, P servers, N ids, U unique rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "persia/aligned_array.h"

namespace persia {

struct DedupPlan {
    std::vector<uint32_t> tables;       // [F] the table of each feature
    std::vector<uint32_t> groups;       // [T] the group of each table: 0, 0, 1, ... non-decreasing, no gaps
    std::vector<uint32_t> num_buckets;  // [T] powers of two
    std::vector<std::vector<uint32_t>> bounds;  // [T][P+1] the servers' bucket bounds
};

struct IdSpan {
    const uint64_t* data;
    size_t size;
};

// Features are visited in their order, ids in array order; "first use" is that order.
struct DedupResult {
    AlignedArray<uint64_t> keys;            // [U] ordered by (table, bucket, first use)
    AlignedArray<uint32_t> table_offsets;   // [T+1] rows of each table
    AlignedArray<uint32_t> server_offsets;  // [T, P+1] absolute rows of each server's part of each table
    AlignedArray<uint32_t> group_offsets;   // [G+1] rows of each group
    AlignedArray<uint16_t>
        narrow_indices;                   // [N] row of each id within its group, if every group has <= 65536
    AlignedArray<uint32_t> wide_indices;  // [N] the same otherwise; the other one is empty
    AlignedArray<uint32_t> feature_offsets;  // [F+1] ids of each feature
    AlignedArray<uint32_t> row_offsets;      // [U+1] the transpose: row u is used at positions
    AlignedArray<uint32_t> positions;        // [N]   positions[row_offsets[u] .. row_offsets[u+1]), ascending
    bool narrow = true;
};

class Deduplicator {
  public:
    // Throws std::invalid_argument when the plan contradicts itself.
    explicit Deduplicator(DedupPlan plan);

    // Thread-safe; calls wait for each other because they share the scratch memory.
    DedupResult run(const std::vector<IdSpan>& values);

    size_t num_features() const { return plan_.tables.size(); }
    size_t num_tables() const { return plan_.groups.size(); }
    size_t num_servers() const { return num_servers_; }

  private:
    struct Entry {
        uint64_t key;
        uint32_t epoch;  // the entry is empty unless this is the current epoch: so nothing is ever cleared
        uint32_t ordinal;
    };

    void reserve(size_t num_ids, size_t largest_table);
    void next_epoch();
    uint32_t find_unique(const IdSpan& ids, size_t mask, uint64_t* unique, uint32_t* uses,
                         uint32_t num_unique, uint32_t* ordinals);
    void sort_table(size_t table, const uint32_t* uses, const uint64_t* unique, DedupResult& result);
    template <typename Index>
    void fill_features(size_t table, Index* indices, DedupResult& result) const;

    DedupPlan plan_;
    size_t num_servers_;
    size_t num_groups_;
    std::vector<std::vector<uint32_t>> features_;  // [T] the features of each table

    std::mutex mutex_;
    std::vector<Entry> entries_;
    uint32_t epoch_ = 0;
    std::vector<uint64_t> unique_;    // [U] in first-use order per table
    std::vector<uint32_t> uses_;      // [U] how many ids use it
    std::vector<uint32_t> ordinals_;  // [N] first-use number of each id's key within its table
    std::vector<uint32_t> rows_;      // [U] final row of each first-use number
    std::vector<uint32_t> starts_;    // [buckets+1]
};

}  // namespace persia
