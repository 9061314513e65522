// One bucket of a table: everything that decides what its rows become. Results therefore don't depend on
// which server a bucket lives on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/bucket_index.h"
#include "persia/bucket_rows.h"

namespace persia {

struct Candidate {  // for eviction
    std::uint32_t stamp;
    std::uint32_t slot;
    Key key;

    bool operator<(const Candidate& other) const {
        return stamp != other.stamp ? stamp < other.stamp : key < other.key;
    }
};

class Bucket {
  public:
    std::uint32_t num_rows() const { return index_.size(); }
    const BucketIndex& index() const { return index_; }
    const BucketRows& rows() const { return rows_; }
    std::size_t held_bytes() const { return rows_.held_bytes() + candidates_.capacity() * sizeof(Candidate); }

    // The slot of `key`, or BucketIndex::kNone.
    std::uint32_t find(Key key, const RowLayout& layout) const {
        return index_.find(tag_of(key),
                           [&](std::uint32_t slot) { return rows_.at(slot, layout)->key == key; });
    }

    // A row for a key that isn't here, used first at `step`; the floats after its header are not set.
    std::uint32_t insert(Key key, std::uint32_t step, const RowLayout& layout, Arena& arena);

    // Notes that `step` uses the row.
    void touch(Row* row, std::uint32_t step) {
        // Pulls of one step may come from several workers, and a later step's may overtake them. A row that
        // was created by the later one serves the earlier one too, which may then push to it.
        if (step < row->born) row->born = step;
        if (step > row->stamp) {
            row->stamp = step;
            expect_stamp(step);
        }
    }

    // Sets a row's recency to what a checkpoint says.
    void restore(Row* row, std::uint32_t stamp) {
        row->stamp = stamp;
        row->born = stamp;
        expect_stamp(stamp);
    }

    // Evicts the rows with the least (stamp, key) until at most `capacity` are left; returns how many.
    // `scratch` is working memory.
    std::uint32_t evict(std::uint32_t capacity, const RowLayout& layout, std::vector<Candidate>& scratch);

    // Managed by the table: this bucket is on its list of buckets over capacity.
    bool dirty = false;

  private:
    // The candidates are the oldest rows as of the last scan. A row that is not among them, or is touched
    // later, is newer than all of them as long as new stamps are; where one isn't, the list is dropped.
    void expect_stamp(std::uint32_t stamp) {
        if (stamp <= newest_candidate_ && !candidates_.empty()) candidates_.clear();
    }
    void find_candidates(const RowLayout& layout, std::vector<Candidate>& scratch);

    BucketIndex index_;
    BucketRows rows_;
    std::vector<Candidate> candidates_;   // oldest last
    std::uint32_t newest_candidate_ = 0;  // its stamp
};

}  // namespace persia
