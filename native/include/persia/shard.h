// Rows with optimizer state for the keys of a range of buckets: a part of a table (table.h) that one thread
// at a time works on. U: keys of a call, D: dim, S: state width.
//
// Keys of a call must be unique and of this shard's buckets. A slot that pull() hands out is where a row
// lies; with it a push finds the row without the index. The slot may have been given to another row since: a
// row remembers the epoch at which it was created, the epoch grows with each eviction, and a pull hands out
// the epoch at which it took place, so a row that came later is known by its greater epoch.
//
// With a disk tier (cold_store.h) a row that would be evicted for lack of room goes to disk as it is, and
// comes back when a pull wants it, before anything else happens to that pull. Rows that a step in flight has
// pulled stay with lru, and come back for their push with lfu. All stay where the disk takes no
// more, unless they are to be evicted then.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "persia/admission.h"
#include "persia/arena.h"
#include "persia/changes.h"
#include "persia/cold_store.h"
#include "persia/eviction.h"
#include "persia/init.h"
#include "persia/key.h"
#include "persia/key_index.h"
#include "persia/row_store.h"
#include "persia/row_update.h"
#include "persia/snapshot.h"
#include "persia/table_config.h"
#include "persia/wire.h"

namespace persia {

struct PushCounts {
    std::uint64_t applied = 0;
    std::uint64_t evicted_in_flight = 0;  // the row that was pulled is gone
    std::uint64_t unadmitted = 0;         // there never was one
    std::uint64_t nonfinite = 0;

    void operator+=(const PushCounts& other) {
        applied += other.applied;
        evicted_in_flight += other.evicted_in_flight;
        unadmitted += other.unadmitted;
        nonfinite += other.nonfinite;
    }
};

struct PushBatch {
    Keys keys;                        // [U]
    Span<const std::uint32_t> slots;  // [U]
    ConstRows gradients;              // [U, D]
    std::uint32_t epoch;              // of the pull
};

struct ExportedRows {  // of one bucket, sorted by key
    std::vector<Key> keys;
    std::vector<float> rows;   // [n, D]
    std::vector<float> state;  // [n, S]
    std::vector<std::uint32_t> stamps;
    std::vector<std::uint32_t> steps;  // updates so far, with optimizers that count them; else empty
};

// Of one bucket: its rows on disk, for a snapshot that has them in files that later ones share.
struct CopiedRows {
    // To be copied to a new file, in the order in which they must lie there: as records of a disk tier if
    // all of the table is stored as fp32, else as rows.
    ExportedRows rows;
    std::vector<std::byte> records;
    std::size_t count = 0;
    // Where the others lie, that were copied before: files, and numbers among the rows of the bucket there.
    std::vector<std::uint32_t> files, numbers;
};

struct BucketState {                      // what a bucket decides by, beside its rows
    std::uint32_t age = 0;                // lfu, see eviction.h
    std::uint32_t counted = 0;            // sightings, see admission.h
    std::vector<std::uint8_t> sightings;  // [cells], none unless sightings are counted
};

struct ImportedRows {  // as ExportedRows, of any buckets and in any order; without state they begin anew
    Keys keys;         // [n]
    Span<const float> rows;            // [n, D]
    Span<const float> state;           // [n, S]
    Span<const std::uint32_t> stamps;  // [n]
    Span<const std::uint32_t> steps;   // [n]
    bool has_state;

    ImportedRows slice(std::size_t begin, std::size_t end, std::size_t dim, std::size_t width) const {
        ImportedRows part{keys.slice(begin, end),
                          rows.slice(begin * dim, end * dim),
                          state,
                          stamps.slice(begin, end),
                          steps,
                          has_state};
        if (!state.empty()) part.state = state.slice(begin * width, end * width);
        if (!steps.empty()) part.steps = steps.slice(begin, end);
        return part;
    }
};

// Which rows of its batches a push is of: those that mark_differing() has marked, or the others, which must
// follow.
enum class PushPart { kAll, kMarked, kOthers };

struct RowCounts {
    std::uint64_t created = 0;   // by pulls
    std::uint64_t imported = 0;  // those that were not here before
    std::uint64_t evicted = 0;
    std::uint64_t to_disk = 0;  // with a disk tier, instead of being evicted
    std::uint64_t from_disk = 0;
    std::uint64_t disk_full = 0;  // of `evicted`: the disk took no more
};

struct SecondLook;

class Shard {
  public:
    static constexpr std::uint32_t kMaxStep = Eviction::kMaxStamp;

    explicit Shard(const TableConfig& config);

    void pull(Keys keys, std::uint32_t step, Rows out, Span<std::uint32_t> slots,
              Span<const std::uint8_t> wanted);
    // slots [U]: where rows lie, for mark_differing(); then unseen rows are as they would begin.
    void lookup(Keys keys, Rows out, Span<std::uint32_t> slots = {}) const;
    // A pull whose rows lookup() gave, see table.h.
    void mark_differing(Keys keys, std::uint32_t since, std::uint32_t used_by, Span<std::uint32_t> slots,
                        Span<std::uint8_t> differs);
    void pull_again(Keys keys, std::uint32_t step, std::uint32_t since, bool noted, Span<std::uint32_t> slots,
                    Span<std::uint8_t> differs);
    void encode_differing(Span<const std::uint32_t> slots, Span<const std::uint8_t> differs,
                          std::uint32_t first, std::uint32_t* positions, Rows out);
    // Writes a 1 for each row whose update push() makes first if asked to.
    void say_marked(Span<const std::uint32_t> slots, Span<std::uint8_t> marked) const {
        for (std::size_t i = 0; i < slots.size(); ++i) marked[i] = is_marked(slots[i]);
    }
    bool calm() const;
    void note_uses() { notes_uses_ = eviction_.lfu(); }
    // Whether rows of a push may have gone to disk since its pull: with lfu, whose stamps don't tell what is
    // in flight. Then recall() brings them back, and gives the batch with the slots that all have now.
    bool recalls() const { return cold_ && eviction_.lfu(); }
    PushBatch recall(const PushBatch& batch, std::vector<std::uint32_t>& slots);
    PushCounts push(const PushBatch& batch, std::uint32_t step, PushPart part = PushPart::kAll);
    PushCounts push_step(const std::vector<PushBatch>& batches, std::uint32_t step,
                         PushPart part = PushPart::kAll);
    // Ask for memory that a call will need soon: first for the index lines of keys, then, when these have
    // come, for the rows; or for the rows of slots and their states.
    void ask_for_lines(Keys keys) const;
    void ask_for_rows(Keys keys) const;
    void ask_for_slots(Span<const std::uint32_t> slots) const;
    void ask_disk(Keys keys) const;  // to begin to read the rows that a pull will want from there
    std::uint64_t evict(std::uint32_t step);
    ExportedRows export_bucket(std::uint32_t bucket) const;  // of all servers' numbers
    void import_rows(const ImportedRows& from);              // skips rows of other shards
    bool can_adopt(const SharedRows& from) const;            // see table.h
    void adopt(const SharedRows& from);
    std::size_t record_bytes() const { return cold_ && update_.wide() ? cold_->record_bytes() : 0; }

    // A snapshot, see table.h.
    void begin_snapshot(bool full);
    ExportedRows snapshot_bucket(std::uint32_t bucket, std::uint32_t since, BucketState& state,
                                 std::uint32_t into = 0, CopiedRows* copied = nullptr);
    void keep_copies(Span<const std::uint32_t> files) {
        if (cold_) cold_->keep_copies(files);
    }
    void add_copied(std::map<std::uint32_t, std::uint64_t>& rows) const {
        if (cold_) cold_->add_copied(rows);
    }
    void end_snapshot();
    std::uint64_t rows_since(std::uint32_t bucket, std::uint32_t since) const;
    std::size_t snapshot_bytes() const { return snapshot_.kept_bytes(); }
    const std::vector<Key>& removed() const { return removed_at_mark_; }
    bool notes_removed() const { return notes_removed_; }
    void restore_bucket(std::uint32_t bucket, const BucketState& state);

    // Changes, see table.h.
    void begin_changes() {
        changes_.begin();
        copied_ = {};
        away_.clear();
    }
    void mark_changes(RowFormat format);
    bool copy_changes(std::size_t most);  // whether there are more
    void take_changes(ChangedRows& to);
    void return_changes(Keys changed, Keys removed);  // skips keys of other shards

    void set_next_step(std::uint32_t step) { next_step_ = step; }

    void set_lr(double lr) { set_learning_rate(update_.optimizer(), lr); }
    bool owns(Key key) const { return bucket_of_(key) - config_.first_bucket < num_buckets(); }
    bool owns_bucket(std::uint32_t bucket) const { return bucket - config_.first_bucket < num_buckets(); }
    std::uint32_t first_bucket() const { return config_.first_bucket; }
    std::uint32_t end_slot() const { return rows_.end_slot(); }
    std::uint32_t epoch() const { return epoch_; }
    const RowCounts& counts() const { return counts_; }
    std::uint32_t sightings_per_bucket() const { return admission_.cells(); }
    const RowUpdate& update() const { return update_; }
    std::uint64_t memory_bytes() const;
    std::uint64_t cold_rows() const { return cold_ ? cold_->size() : 0; }
    std::uint64_t disk_bytes() const { return cold_ ? cold_->file_bytes() : 0; }
    const std::string& disk_problem() const { return disk_problem_; }  // why it took no more, if it ever did
    // Working memory of push_step() for so many rows.
    static std::uint64_t step_bytes(std::uint32_t dim, std::uint64_t rows);

  private:
    std::uint32_t num_buckets() const { return config_.buckets_here(); }
    std::uint32_t bucket(Key key) const { return bucket_of_(key) - config_.first_bucket; }

    std::uint32_t resolve(Key key, std::uint32_t step, bool& fresh);
    // Finds the slot of each key, with the memory that its row needs under way, and uses the rows.
    //   mask touch(key, line, at, here)  here: all bits if the line's entry `at` is the key's, else 0;
    //                                    returns it, or 0 if resolve() has to see to that entry
    //   slot resolve(key, bool& fresh)   for keys that aren't found so; kNoSlot if there is none
    //   use(begin, rows, count)          rows of so many keys; any row for those that aren't found so
    //   bring(keys, rest)                then the others of a part of the keys may come into memory
    //   use_rest(i, row, fresh)          then they are used, in order; null without a slot
    template <class Touch, class Resolve, class Use, class Bring, class UseRest>
    void walk(Keys keys, Span<std::uint32_t> slots, const Touch& touch, const Resolve& resolve,
              const Use& use, const Bring& bring, const UseRest& use_rest) const;
    // The two halves of a walk over a part of the keys: those in their home lines, and the others.
    template <class Touch, class Use>
    std::size_t walk_homes(Keys keys, Span<std::uint32_t> slots, std::uint32_t* rest, const Touch& touch,
                           const Use& use) const;
    template <class Touch, class Resolve, class UseRest>
    void walk_rest(Keys keys, Span<std::uint32_t> slots, Span<const std::uint32_t> rest, const Touch& touch,
                   const Resolve& resolve, const UseRest& use_rest) const;
    // The same two, eight keys at a time.
    template <class Touch, class Use>
    std::size_t walk_homes_wide(Keys keys, Span<std::uint32_t> slots, std::uint32_t* rest, const Touch& touch,
                                const Use& use) const;
    template <class Touch, class Resolve, class UseRest>
    void walk_rest_wide(Keys keys, Span<std::uint32_t> slots, Span<const std::uint32_t> rest,
                        const Touch& touch, const Resolve& resolve, const UseRest& use_rest) const;
    std::size_t look_again(Keys keys, const SecondLook& look, Span<std::uint32_t> slots,
                           Span<std::uint8_t> differs);
    void ask_for_second_line(Key key) const;
    bool decides_by_stamps() const { return !eviction_.lfu() && eviction_.ttl() == 0; }
    bool is_marked(std::uint32_t slot) const {
        return !marked_.empty() && (marked_[slot / 64 & (marked_.size() - 1)] >> slot % 64 & 1) != 0;
    }
    void note_used(Span<const std::uint32_t> slots, std::uint32_t step);
    void insert(std::uint32_t bucket, Key key, std::uint32_t slot, std::uint32_t stamp);
    void start_row(Key key, std::uint32_t slot);
    void import_some(const ImportedRows& from);
    void import_beside_disk(const ImportedRows& from);
    void import_run(const ImportedRows& run);  // rows of one bucket
    // anew: the keys are different ones, and none of them is here, nor on disk.
    void import_in_pieces(const ImportedRows& from, bool anew);
    std::pair<std::uint32_t, Key> least_to_stay(std::uint32_t bucket, const ImportedRows& from) const;
    std::vector<std::uint32_t> split_import(std::uint32_t bucket, const ImportedRows& from, bool anew);
    void keep_before_change(Keys keys);
    void keep_before_push(const PushBatch& batch);
    void keep_before_removal(std::uint32_t bucket, const KeyIndex::Entry& entry);
    void note_removed(Key key);
    void note_pushed(const PushBatch& batch);
    void copy_changed(Keys keys, const std::byte* const* weights);
    void keep_changed(Key key, std::uint32_t slot);  // before it changes or goes
    ExportedRows export_rows(const std::vector<Snapshot::Kept>& rows) const;
    Snapshot::Kept row_at(const KeyIndex::Entry& entry) const {
        const std::uint32_t slot = entry.slot();
        return {entry.key(), entry.stamp(), rows_.weights(slot), rows_.state(slot)};
    }
    void remove(std::uint32_t bucket, KeyIndex::Entry entry);
    void drop(std::uint32_t bucket, KeyIndex::Entry entry);  // its slot, but not the row
    // What a disk tier adds, in shard_cold.cpp and shard_moves.cpp.
    bool demote(std::uint32_t bucket, KeyIndex::Entry entry);  // whether the disk took it
    void note_full(const DiskFull& error);
    void choose_going(std::uint32_t bucket, std::uint32_t most);
    bool send_going(bool& full);
    void shrink(std::uint32_t step);  // with lru rows that a later step has used stay
    void want_missing(Keys keys) const;
    void want_missing(Keys keys, Span<const std::uint32_t> rest) const;
    // Brings rows back for `step`, which must use each of them at once; the second: of the keys `rest` alone.
    void fetch(Keys keys, std::uint32_t step);
    void fetch(Keys keys, Span<const std::uint32_t> rest, std::uint32_t step);
    void fetch_wanted(std::uint32_t step);
    void sweep_cold(std::uint32_t bucket);
    void lookup_cold(Keys keys, Rows out) const;
    void copy_away();
    void add_cold(std::uint32_t bucket, std::vector<Snapshot::Kept>& rows, std::vector<std::byte>& held,
                  std::uint32_t least, const std::function<bool(const ColdStore::Row&)>& chosen) const;
    void copy_cold(std::uint32_t bucket, std::vector<Snapshot::Kept>& rows, std::vector<std::byte>& held,
                   std::uint32_t into, CopiedRows& copied) const;
    void hold(const ColdStore::Row& row, std::vector<Snapshot::Kept>& rows,
              std::vector<std::byte>& held) const;
    // Lets the rows from `first` on point to what is held of them.
    void point(std::vector<Snapshot::Kept>& rows, std::size_t first,
               const std::vector<std::byte>& held) const;
    std::size_t state_at() const { return (update_.weight_bytes() + 3) / 4 * 4; }  // of a row that is held
    void sweep(std::uint32_t step);
    template <std::uint32_t kDim>
    const float* usable_gradient(const PushBatch& batch, std::size_t i, PushCounts& counts);
    template <std::uint32_t kDim, class Chosen, class RowAt>
    PushCounts push_with(Chosen& chosen, const PushBatch& batch, std::uint32_t step, std::size_t n,
                         const RowAt& row_at);
    template <class Chosen>
    void apply_sums(Chosen& chosen, std::uint32_t step, PushCounts& counts);
    void add_to_sums(const PushBatch& batch, PushPart part, PushCounts& counts);

    struct Merged {  // a row that at least one batch of a step pushes to
        Key key;
        std::uint32_t slot;
        std::uint32_t num_batches;
    };

    TableConfig config_;
    RowUpdate update_;
    RowInit init_;
    BucketOf bucket_of_;
    Arena arena_;
    KeyIndex index_;
    RowStore rows_;
    Eviction eviction_;
    Admission admission_;
    // Of lookup(): the row is on disk, and so without a slot.
    static constexpr std::uint32_t kOnDisk = kNoSlot - 1;
    // The last step that pulled each slot's row, where stamps don't tell.
    bool notes_uses_ = false;
    std::vector<std::uint32_t> last_used_;
    // Slots of rows that a patch waits for, and some others, see is_marked().
    std::vector<std::uint64_t> marked_;
    std::uint32_t epoch_ = 0;
    // Slots pulled at this epoch or later still have their rows (within an epoch none expires that is in
    // flight).
    std::uint32_t removed_at_ = 0;
    std::uint32_t next_step_ = 0;       // after the last evict()
    std::vector<std::uint32_t> dirty_;  // buckets over capacity, perhaps
    std::vector<bool> is_dirty_;
    RowCounts counts_;
    Snapshot snapshot_;
    std::vector<std::uint32_t> ages_at_mark_;
    // Keys whose rows went since the last full snapshot, in case the next one holds only what changed since.
    std::vector<Key> removed_, removed_at_mark_;
    bool notes_removed_ = false;
    Changes changes_;
    std::unique_ptr<ColdStore> cold_;  // none without a disk tier
    std::string disk_problem_;
    ChangedRows copied_;  // of the last mark
    RowFormat copied_format_ = RowFormat::kFp32;
    std::vector<float> changed_room_;  // one row; room_ has a gradient when a row is kept
    std::unordered_set<Key> away_;     // rows on disk that changed since the mark, before they went there

    // Working memory, kept from call to call.
    mutable std::vector<float> room_;           // one row
    mutable std::vector<std::byte> first_;      // one row's weights
    mutable std::vector<std::uint32_t> slots_;  // lookup
    std::vector<std::uint32_t> rest_;           // places of keys that a second pass is of
    std::vector<Merged> merged_;                // push_step
    std::vector<float> sums_;                   // [merged, D]
    std::vector<std::uint32_t> merged_map_;     // hash of a slot -> its place in merged_ + 1
    std::vector<Key> expired_keys_;
    struct Going {  // a row to disk, and its bucket's age before it was chosen
        Key key;
        std::uint32_t bucket, age;
    };
    std::vector<Going> going_;
    mutable std::vector<ColdStore::Wanted> wanted_;  // from disk
    mutable unsigned asks_spared_ = 0;
};

}  // namespace persia
