// Shard's rows of one moment: exports, and snapshots that are taken while it goes on working.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "persia/prefetch.h"
#include "persia/shard.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 16;  // keys whose memory is asked for before they are looked at
constexpr std::size_t kMinRemoved = 1024;

void sort_by_key(std::vector<Snapshot::Kept>& rows) {
    std::sort(rows.begin(), rows.end(),
              [](const Snapshot::Kept& a, const Snapshot::Kept& b) { return a.key < b.key; });
}

}  // namespace

ExportedRows Shard::export_rows(const std::vector<Snapshot::Kept>& rows) const {
    const std::size_t dim = config_.dim, width = update_.state_width();
    ExportedRows exported;
    exported.keys.resize(rows.size());
    exported.stamps.resize(rows.size());
    exported.rows.resize(rows.size() * dim);
    exported.state.resize(rows.size() * width);
    if (update_.has_steps()) exported.steps.resize(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        if (i + kAhead < rows.size()) {
            prefetch_cold_lines(rows[i + kAhead].weights, rows_.weight_lines());
            prefetch_cold_lines(rows[i + kAhead].state, rows_.state_lines());
        }
        exported.keys[i] = rows[i].key;
        exported.stamps[i] = rows[i].stamp;
        update_.read(rows[i].weights, rows[i].state, exported.rows.data() + i * dim,
                     exported.state.data() + i * width, exported.steps.data() + i);
    }
    return exported;
}

ExportedRows Shard::export_bucket(std::uint32_t number) const {
    const std::uint32_t home = number - config_.first_bucket;
    std::vector<Snapshot::Kept> rows;
    rows.reserve(index_.size(home));
    index_.for_each(home, [&](const KeyIndex::Entry& entry) {
        if (!eviction_.expired(entry.stamp(), next_step_)) rows.push_back(row_at(entry));
    });
    std::vector<std::byte> held;
    if (cold_) {
        add_cold(home, rows, held, 0,
                 [&](const ColdStore::Row& row) { return !eviction_.expired(row.stamp, next_step_); });
    }
    sort_by_key(rows);
    return export_rows(rows);
}

void Shard::begin_snapshot(bool full) {
    snapshot_.begin(num_buckets(), rows_.end_slot());
    ages_at_mark_ = eviction_.ages();
    admission_.begin_snapshot();
    if (cold_) cold_->mark();
    if (full) {
        removed_.clear();
        notes_removed_ = true;
    }
    removed_at_mark_ = removed_;
}

ExportedRows Shard::snapshot_bucket(std::uint32_t number, std::uint32_t since, BucketState& state,
                                    std::uint32_t into, CopiedRows* copied) {
    const std::uint32_t home = number - config_.first_bucket;
    if (snapshot_.copied(home)) {
        throw std::logic_error("bucket " + std::to_string(number) + " was copied already");
    }
    std::vector<Snapshot::Kept> rows;
    rows.reserve(index_.size(home));
    const auto take = [&](const Snapshot::Kept& row) {
        if (row.stamp > since || since == 0) rows.push_back(row);
    };
    index_.for_each(home, [&](const KeyIndex::Entry& entry) {
        if (!snapshot_.settled(entry.slot())) take(row_at(entry));
    });
    snapshot_.for_each_kept(home, take);
    std::vector<std::byte> held;
    if (cold_ && into != 0) {
        copy_cold(home, rows, held, into, *copied);
    } else if (cold_) {
        add_cold(home, rows, held, since + (since != 0), [&](const ColdStore::Row& row) {
            return row.before_mark && (row.stamp > since || since == 0);
        });
    }
    sort_by_key(rows);
    ExportedRows exported = export_rows(rows);
    state.age = ages_at_mark_[home];
    admission_.take_snapshot(home, state.counted, state.sightings);
    snapshot_.release(home);
    return exported;
}

std::uint64_t Shard::rows_since(std::uint32_t number, std::uint32_t since) const {
    std::uint64_t count = 0;
    index_.for_each(number - config_.first_bucket,
                    [&](const KeyIndex::Entry& entry) { count += entry.stamp() > since; });
    if (cold_) count += cold_->rows_since(number - config_.first_bucket, since);
    return count;
}

void Shard::end_snapshot() {
    snapshot_.end();
    if (cold_) cold_->release();
    admission_.end_snapshot();
    ages_at_mark_ = {};
    removed_at_mark_ = {};
}

void Shard::restore_bucket(std::uint32_t number, const BucketState& state) {
    const std::uint32_t home = number - config_.first_bucket;
    eviction_.restore_age(home, state.age);
    admission_.restore(home, state.counted, state.sightings);
}

// Every row that a pull changes, or that a push changes after it, comes by here first.
void Shard::keep_before_change(Keys keys) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (i + kAhead < keys.size())
            prefetch_cold_line(index_.home_line(bucket(keys[i + kAhead]), keys[i + kAhead]));
        const std::uint32_t home = bucket(keys[i]);
        if (snapshot_.copied(home)) continue;
        const KeyIndex::Entry entry = index_.find(home, keys[i]);
        if (!entry || snapshot_.settled(entry.slot())) continue;
        const Snapshot::Kept row = row_at(entry);
        snapshot_.keep(home, row.key, row.stamp, entry.slot(), row.weights, row.state);
    }
}

// For slots of pulls that came before the mark.
void Shard::keep_before_push(const PushBatch& batch) {
    for (std::size_t i = 0; i < batch.keys.size(); ++i) {
        if (batch.slots[i] != kNoSlot && !snapshot_.settled(batch.slots[i])) {
            keep_before_change(batch.keys.slice(i, i + 1));
        }
    }
}

void Shard::keep_before_removal(std::uint32_t bucket, const KeyIndex::Entry& entry) {
    if (snapshot_.copied(bucket) || snapshot_.settled(entry.slot())) return;
    const Snapshot::Kept row = row_at(entry);
    snapshot_.keep(bucket, row.key, row.stamp, entry.slot(), row.weights, row.state);
}

void Shard::note_removed(Key key) {
    removed_.push_back(key);
    if (removed_.size() < kMinRemoved || removed_.size() * 2 < rows_.end_slot() + cold_rows()) return;
    removed_ = {};  // so many that only a full snapshot makes sense
    notes_removed_ = false;
}

}  // namespace persia
