// One server's part of an embedding table, as shards that each have a thread and a run of the buckets.
//
// Not thread-safe: one call at a time. U: keys of a call, D: dim. Keys of a call must be unique and ordered
// by bucket. Everything that decides what a row becomes belongs to its bucket, so results don't depend on the
// number of threads. All calls throw std::invalid_argument for keys of another server's bucket, or out of
// order, and for spans whose lengths don't fit together, before they change anything. After any other
// exception (no memory) the table is of no use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "persia/shard.h"
#include "persia/thread_team.h"

namespace persia {

class Table {
  public:
    static constexpr std::uint32_t kMaxStep = Shard::kMaxStep;
    // Waking threads takes some 10 microseconds: what about 500 rows take.
    static constexpr std::size_t kMinKeysForThreads = 2048;

    explicit Table(const TableConfig& config);

    // Rows of all keys to `out` [U, D], created where unseen (keys that are not admitted give zeros and the
    // slot kNoSlot); notes that `step` uses them. Returns the epoch that push() wants back. With `wanted` [U]
    // only rows of keys with a 1 go to `out`, one behind the other; nothing else changes.
    std::uint32_t pull(Keys keys, std::uint32_t step, Rows out, Span<std::uint32_t> slots,
                       Span<const std::uint8_t> wanted = {});

    // Evaluation: like pull, but changes nothing; unseen rows are zeros.
    void lookup(Keys keys, Rows out) const;

    // A pull of `step` whose rows are looked up ahead, after step `since`. lookup_shard() with `slots` [U]
    // gives them, those unseen as a pull would begin them where each key is admitted, and notes what the next
    // call needs. mark_differing_shard(), once all pulls of step - 1 are made and none of `step`, writes a 1
    // to `differs` [U] for each row that updates up to step - 1 may change, and where rows lie; both change
    // nothing. (used_by: 0, or `step`, if all shards are calm() and no other pull of `step` comes: then that
    // it uses these rows can be noted now, and pull_again_shard() need not if it is told so.)
    // pull_again_shard() does at its time what pull() does, adds a 1 for each row that isn't what
    // was looked up for another reason, and gives slots for push(). encode_differing_shard() writes the
    // positions in `keys`, and the rows, of those that have a 1, after this or, if all shards are calm(),
    // once the marked rows' updates are made: push_shard() makes these first if asked to.
    void mark_differing_shard(unsigned shard, Keys keys, std::uint32_t since, std::uint32_t used_by,
                              Span<std::uint32_t> slots, Span<std::uint8_t> differs);
    void pull_again_shard(unsigned shard, Keys keys, std::uint32_t step, std::uint32_t since, bool noted,
                          Span<std::uint32_t> slots, Span<std::uint8_t> differs);
    void encode_differing_shard(unsigned shard, Keys keys, Span<const std::uint32_t> slots,
                                Span<const std::uint8_t> differs, std::uint32_t first,
                                std::uint32_t* positions, Rows out);
    // A 1 to `marked` [U] for each row whose update push_shard() makes first if asked to: all of those above.
    void say_marked_shard(unsigned shard, Keys keys, Span<const std::uint32_t> slots,
                          Span<std::uint8_t> marked) const;
    // Whether no row may go, and no key's admission change, before a pull of the next step.
    bool calm() const;
    // Has pulls note from now on what mark_differing_shard() can't learn from the rows themselves.
    void note_uses();

    // One optimizer update per row with the gradients for what a pull gave. A row that was evicted since is
    // left alone, also if it was re-created. A row with an infinite or NaN element is skipped. `step` decides
    // how 16-bit storage rounds.
    PushCounts push(const PushBatch& batch, std::uint32_t step);

    // The same for all batches of a step at once: gradients of a row are summed in the order of the batches,
    // in fp32, then applied as one update. Counts are of (batch, row); if finite gradients sum to something
    // non-finite, all of them count as such.
    PushCounts push_step(const std::vector<PushBatch>& batches, std::uint32_t step);

    // The same in parts, for who has several tables: first the checks, then the work of each shard. Different
    // shards may be worked on at the same time. push_shard() is both, push() of one batch.
    void check_keys(Keys keys) const;
    void check_slots(Keys keys, Span<const std::uint32_t> slots) const;
    void pull_shard(unsigned shard, Keys keys, std::uint32_t step, Rows out, Span<std::uint32_t> slots,
                    Span<const std::uint8_t> wanted);
    void lookup_shard(unsigned shard, Keys keys, Rows out, Span<std::uint32_t> slots = {}) const;
    PushCounts push_shard(unsigned shard, Span<const PushBatch> batches, std::uint32_t step,
                          PushPart part = PushPart::kAll);
    // Ask for the memory of the shard's few keys ahead of these calls, see Shard; for many it isn't worth it.
    void ask_for_lines(unsigned shard, Keys keys) const;
    void ask_for_rows(unsigned shard, Keys keys) const;
    void ask_for_slots(unsigned shard, Keys keys, Span<const std::uint32_t> slots) const;

    // Asks the disk for the rows of a pull that will come, without waiting for it.
    void ask_disk(Keys keys) const;

    // After `step` is applied, and only between steps: evicts rows over their time to live and, of each
    // bucket over its capacity, those that the policy says; counts sightings. Returns how many rows went.
    // Until then pulls may exceed the capacity. With a disk tier the rows over the capacity go there instead,
    // but those that a step after `step` has pulled.
    std::uint64_t evict(std::uint32_t step);

    void set_lr(double lr);

    ExportedRows export_bucket(std::uint32_t bucket) const;
    // Adds rows, or replaces those that are here.
    void import_rows(const ImportedRows& rows);
    // Takes rows that lie in a file as `copied` had them, of the buckets that are here, without a copy: the
    // file is read as long as rows of it are on disk. None of their keys may be here. False, and nothing is
    // changed, if the disk tier has no room, or the table stores rows otherwise.
    bool adopt_rows(const SharedRows& rows);
    std::size_t record_bytes() const { return shards_[0]->record_bytes(); }  // in such a file; 0: in none

    // A snapshot: the rows of one moment, its mark, copied bucket by bucket while calls go on in between. At
    // the mark no pull may be without its push. What changes before it is copied is kept aside,
    // snapshot_bytes() of it. A full one also begins to note which keys' rows go; the next may then be an
    // incremental one: buckets since a step (rows with a greater stamp; 0: all), and removed(), with keys
    // that went since the full one, perhaps came back; if can_be_incremental(), since very many removals are
    // not noted. std::logic_error if one is under way.
    // into: the number, not 0, of a new file that later full snapshots share; then rows that lie on disk in
    // whole extents are in `copied`, and not among the others. Before the first bucket keep_copies() says
    // which files of earlier ones are still there. copied_rows(): by file, rows that are on disk now.
    void begin_snapshot(bool full);
    ExportedRows snapshot_bucket(std::uint32_t bucket, std::uint32_t since, BucketState& state,
                                 std::uint32_t into = 0, CopiedRows* copied = nullptr);
    void keep_copies(Span<const std::uint32_t> files);
    std::map<std::uint32_t, std::uint64_t> copied_rows() const;
    // Rows of the bucket with a greater stamp, now: about what snapshot_bucket() will give.
    std::uint64_t rows_since(std::uint32_t bucket, std::uint32_t since) const;
    void end_snapshot();  // also of one that was given up
    std::size_t snapshot_bytes() const;
    std::vector<Key> removed() const;  // as of the mark
    bool can_be_incremental() const;
    void restore_bucket(std::uint32_t bucket, const BucketState& state);

    // Changes: from begin_changes() on it is noted which rows pushes and imports change, and which go.
    // mark_changes() ends a list of them and begins the next; copy_changes() copies rows of the last list, as
    // they were at the mark, so many at a time until it returns false; take_changes() appends what has been
    // copied to `to`; return_changes() takes back keys that it gave, for the next list. Other calls may come
    // in between. Rows past their time to live go when they are swept away or used again. What wasn't taken
    // before the next mark is in the next list.
    void begin_changes();
    void mark_changes(RowFormat format);
    bool copy_changes(std::size_t most);
    void take_changes(ChangedRows& to);
    void return_changes(Keys changed, Keys removed);
    void set_next_step(std::uint32_t step);  // the step after the last evict()

    const TableConfig& config() const { return config_; }
    std::uint32_t dim() const { return config_.dim; }
    unsigned num_shards() const { return static_cast<unsigned>(shards_.size()); }
    std::uint32_t epoch() const { return shards_[0]->epoch(); }
    std::uint32_t state_width() const { return shards_[0]->update().state_width(); }
    bool has_steps() const { return shards_[0]->update().has_steps(); }
    std::size_t row_bytes() const {
        return shards_[0]->update().weight_bytes() + shards_[0]->update().state_bytes();
    }
    std::uint32_t sightings_per_bucket() const { return shards_[0]->sightings_per_bucket(); }
    RowCounts counts() const;
    std::uint64_t num_rows() const;   // on disk too
    std::uint64_t cold_rows() const;  // on disk
    std::uint64_t disk_bytes() const;
    std::string disk_problem() const;  // why the disk took no more, if it ever did
    std::uint64_t memory_bytes() const;

  private:
    void refuse_keys(Keys keys) const;  // says which is wrong
    Shard& shard_of(std::uint32_t bucket) const;
    struct Range {
        std::size_t begin, end;
    };
    Range range_of(unsigned shard, Keys keys) const;  // of the keys that are the shard's
    template <class Job>
    void each_shard(std::size_t num_keys, Job&& job) const;

    TableConfig config_;
    BucketOf bucket_of_;
    std::vector<std::unique_ptr<Shard>> shards_;
    mutable std::unique_ptr<ThreadTeam> team_;  // once it is needed
    bool in_snapshot_ = false;
};

}  // namespace persia
