// One server's shard of an embedding table: rows with optimizer state for the keys of a range of buckets.
//
// Not thread-safe: one call at a time. U: keys of a call, D: dim, S: state width. The keys of a call should
// be unique and ordered by bucket; the order only matters for speed. All calls throw std::invalid_argument
// for a key of another server's bucket before they change anything.
//
// A slot that pull() hands out is a row's number within its key's bucket: (key, slot) finds a row without the
// index. Two keys of different buckets may have equal slots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "persia/arena.h"
#include "persia/bucket.h"
#include "persia/codec.h"
#include "persia/init.h"
#include "persia/key.h"
#include "persia/optimizer.h"

namespace persia {

struct TableConfig {
    std::uint32_t dim = 0;
    std::string optimizer;
    OptimizerOptions options;
    std::string init;  // RowInit's kind, a and b
    double init_a = 0;
    double init_b = 0;
    std::uint64_t seed = 0;
    std::uint32_t num_buckets = 1;  // of all servers; a power of two
    std::uint32_t first_bucket = 0;
    std::uint32_t end_bucket = 1;
    std::uint32_t bucket_capacity = 1;  // rows
};

struct PushCounts {
    std::uint64_t applied = 0;
    std::uint64_t evicted_in_flight = 0;  // the row that was pulled is gone
    std::uint64_t nonfinite = 0;
};

template <class T>  // float or Half
struct PushBatch {
    const Key* keys;             // [n]
    const std::uint32_t* slots;  // [n]
    const T* gradients;          // [n, D]
    std::size_t n;
};

struct ExportedRows {  // of one bucket, sorted by key
    std::vector<Key> keys;
    std::vector<float> rows;   // [n, D]
    std::vector<float> state;  // [n, S]
    std::vector<std::uint32_t> stamps;
    std::vector<std::uint32_t> steps;  // updates so far, with optimizers that count them; else empty
};

class Table {
  public:
    static constexpr std::uint32_t kMaxStep = kFreed - 1;

    explicit Table(const TableConfig& config);

    // Rows of all keys, created where unseen; `step` becomes their recency.
    template <class T>
    void pull(const Key* keys, std::size_t n, std::uint32_t step, T* out, std::uint32_t* slots);

    // Evaluation: like pull, but changes nothing; unseen rows are zeros.
    template <class T>
    void lookup(const Key* keys, std::size_t n, T* out) const;

    // One optimizer update per row with the gradients for what pull() gave at `step`. A row that was evicted
    // since is left alone, also if it was re-created by a later step. (Where workers overtake each other a
    // late pull of an early step may re-create it; then a gradient of that step counts as applied.) A row
    // with an infinite or NaN element is skipped.
    template <class T>
    PushCounts push(const PushBatch<T>& batch, std::uint32_t step);

    // The same for all batches of a step at once: gradients of a row are summed in the order of the batches,
    // in fp32, then applied as one update. Counts are of (batch, row); if finite gradients sum to something
    // non-finite, all of them count as such.
    template <class T>
    PushCounts push_step(const std::vector<PushBatch<T>>& batches, std::uint32_t step);

    // Evicts the least (stamp, key) of each bucket over its capacity; returns how many rows. To be called
    // between steps only. Until then pulls may exceed the capacity.
    std::uint64_t evict();

    void set_lr(double lr) { set_learning_rate(optimizer_, lr); }

    ExportedRows export_bucket(std::uint32_t bucket) const;
    // Adds rows, or replaces those that are here; their creation counts as at their stamp. The arrays must
    // have the sizes that export_bucket gives.
    void import_rows(const Key* keys, std::size_t n, const float* rows, const float* state,
                     const std::uint32_t* stamps, const std::uint32_t* steps);

    std::uint32_t dim() const { return layout_.dim; }
    std::uint32_t first_bucket() const { return config_.first_bucket; }
    std::uint32_t end_bucket() const { return config_.end_bucket; }
    std::uint32_t state_width() const { return state_width_; }
    bool has_steps() const { return has_steps_; }
    std::uint32_t row_bytes() const { return 4 * (layout_.dim + layout_.state_words); }
    std::uint64_t num_rows() const { return created_rows_ + imported_rows_ - evicted_rows_; }
    std::uint64_t created_rows() const { return created_rows_; }    // by pulls
    std::uint64_t imported_rows() const { return imported_rows_; }  // those that were not here before
    std::uint64_t evicted_rows() const { return evicted_rows_; }
    std::uint64_t memory_bytes() const;

  private:
    Bucket& bucket(Key key) { return buckets_[bucket_of_(key) - config_.first_bucket]; }
    const Bucket& bucket(Key key) const { return buckets_[bucket_of_(key) - config_.first_bucket]; }
    void check_keys(const Key* keys, std::size_t n) const;
    template <class T>
    void check_slots(const PushBatch<T>& batch) const;
    std::uint32_t insert(Bucket& into, Key key, std::uint32_t step);
    std::uint32_t find(const Bucket& home, Key key, std::uint32_t likely_slot) const;
    std::uint32_t find_or_create(Bucket& home, Key key, std::uint32_t likely_slot, std::uint32_t step);
    std::uint32_t prefetch_likely(Key key) const;  // the slot of the first row with the key's tag, or kNone
    template <class Optimizer, class T>
    PushCounts push_with(Optimizer& optimizer, const PushBatch<T>& batch, std::uint32_t step);
    template <class Optimizer>
    void apply_sums(Optimizer& optimizer, PushCounts& counts);
    template <class T>
    void add_to_sums(const PushBatch<T>& batch, std::uint32_t step, PushCounts& counts);

    struct Merged {  // a row that at least one batch of a step pushes to
        Row* row;
        std::uint32_t num_batches;
    };

    TableConfig config_;
    Optimizer optimizer_;
    RowInit init_;
    BucketOf bucket_of_;
    std::uint32_t state_width_;
    bool has_steps_;
    RowLayout layout_;
    Arena arena_;
    std::vector<Bucket> buckets_;
    std::vector<std::uint32_t> dirty_;  // buckets over capacity, relative to the first
    std::uint64_t created_rows_ = 0;
    std::uint64_t imported_rows_ = 0;
    std::uint64_t evicted_rows_ = 0;

    // Working memory, kept from call to call.
    std::vector<Candidate> scratch_;
    std::vector<float> gradient_;            // one row
    std::vector<Merged> merged_;             // push_step
    std::vector<float> sums_;                // [merged, D]
    std::vector<std::uint32_t> merged_map_;  // hash of a row's address -> its place in merged_ + 1
};

}  // namespace persia
