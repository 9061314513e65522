// Shard's rows on disk, see cold_store.h: imports, look-ups and snapshots.
#include <algorithm>
#include <functional>
#include <stdexcept>
#include <utility>

#include "persia/prefetch.h"
#include "persia/shard.h"
#include "persia/storage.h"
#include "persia/wire.h"

namespace persia {
namespace {

// Rows are imported so many at a time, or such a share of what a bucket may have: before more come some go to
// disk.
constexpr std::size_t kLeastImported = 64, kImportedShare = 8;

// Some of the rows that are to be imported, in memory of its own.
struct PickedRows {
    std::vector<Key> keys;
    std::vector<float> rows, state;
    std::vector<std::uint32_t> stamps, steps;

    PickedRows(const ImportedRows& from, Span<const std::uint32_t> which, std::size_t dim,
               std::size_t width) {
        for (const std::uint32_t i : which) {
            keys.push_back(from.keys[i]);
            stamps.push_back(from.stamps[i]);
            rows.insert(rows.end(), &from.rows[i * dim], &from.rows[i * dim] + dim);
            if (!from.state.empty()) {
                state.insert(state.end(), &from.state[i * width], &from.state[i * width] + width);
            }
            if (!from.steps.empty()) steps.push_back(from.steps[i]);
        }
    }
    ImportedRows all(bool has_state) const { return {keys, rows, state, stamps, steps, has_state}; }
};

struct Gathering {
    ColdStore& store;

    explicit Gathering(ColdStore& of) : store(of) { store.gather(true); }
    ~Gathering() { store.gather(false); }
};

}  // namespace

bool Shard::can_adopt(const SharedRows& from) const {
    return record_bytes() != 0 && !changes_.noted() && cold_->has_room(from);
}

void Shard::adopt(const SharedRows& from) {
    if (snapshot_.active()) throw std::logic_error("rows can't be adopted while a snapshot is under way");
    removed_at_ = ++epoch_;
    const std::uint64_t rows = cold_->adopt(from, bucket_of_, kMaxStep);
    counts_.imported += rows;
    counts_.to_disk += rows;
}

void Shard::import_in_pieces(const ImportedRows& from, bool anew) {
    const std::size_t share = anew ? 1 : kImportedShare;
    const std::size_t some = std::max<std::size_t>(kLeastImported, config_.bucket_capacity / share);
    for (std::size_t begin = 0; begin < from.keys.size(); begin += some) {
        const std::size_t end = std::min(begin + some, from.keys.size());
        const ImportedRows part = from.slice(begin, end, config_.dim, update_.state_width());
        if (!anew) fetch(part.keys, kMaxStep);
        import_some(part);
        shrink(kMaxStep);
        if (!disk_problem_.empty() && !config_.full_disk_evicts) throw DiskFull(disk_problem_);
    }
}

void Shard::import_beside_disk(const ImportedRows& from) {
    const Gathering gathering(*cold_);
    for (std::size_t begin = 0, end = 0; begin < from.keys.size(); begin = end) {
        const std::uint32_t number = bucket_of_(from.keys[begin]);
        while (++end < from.keys.size() && bucket_of_(from.keys[end]) == number) {
        }
        if (owns_bucket(number)) import_run(from.slice(begin, end, config_.dim, update_.state_width()));
    }
    cold_->gather(false);
    try {
        cold_->write_held();
    } catch (const DiskFull& error) {
        note_full(error);
        if (!config_.full_disk_evicts) throw;
    }
}

// Rows that would be the first of their bucket to go to disk are put there at once. All others come into
// memory, also those that are here already, or may be.
void Shard::import_run(const ImportedRows& run) {
    const std::uint32_t home = bucket(run.keys[0]);
    const std::size_t here = index_.size(home), come = run.keys.size();
    const bool unique =  // for all that is seen here; else the last of a key must win
        std::adjacent_find(run.keys.begin(), run.keys.end(), std::greater_equal<>()) == run.keys.end();
    const bool anew = unique && here == 0 && cold_->rows(home) == 0;
    if (!unique || here + come <= config_.bucket_capacity || come * kImportedShare < here ||
        changes_.noted()) {
        import_in_pieces(run, anew);
        return;
    }
    const std::vector<std::uint32_t> stay = split_import(home, run, anew);
    import_in_pieces(PickedRows(run, stay, config_.dim, update_.state_width()).all(run.has_state), anew);
}

// The least (stamp, key) of the rows that stay in memory, of those that are there and those that come.
std::pair<std::uint32_t, Key> Shard::least_to_stay(std::uint32_t home, const ImportedRows& from) const {
    std::vector<std::uint32_t> stamps(from.stamps.begin(), from.stamps.end());
    index_.for_each(home, [&](const KeyIndex::Entry& entry) { stamps.push_back(entry.stamp()); });
    const auto rank = stamps.end() - static_cast<std::ptrdiff_t>(config_.bucket_capacity);
    std::nth_element(stamps.begin(), rank, stamps.end());
    const std::uint32_t stamp = *rank;
    std::vector<Key> tied;
    for (std::size_t i = 0; i < from.keys.size(); ++i) {
        if (from.stamps[i] == stamp) tied.push_back(from.keys[i]);
    }
    index_.for_each(home, [&](const KeyIndex::Entry& entry) {
        if (entry.stamp() == stamp) tied.push_back(entry.key());
    });
    const auto at = tied.begin() + std::count(stamps.begin(), rank, stamp);
    std::nth_element(tied.begin(), at, tied.end());
    return {stamp, *at};
}

// Puts rows of a bucket to disk, and gives the others.
std::vector<std::uint32_t> Shard::split_import(std::uint32_t home, const ImportedRows& from, bool anew) {
    const std::size_t n = from.keys.size();
    const auto least = least_to_stay(home, from);
    std::vector<std::uint32_t> stay;
    bool full = false;
    cold_->reserve(home, std::min(n, index_.size(home) + n - config_.bucket_capacity));
    for (std::uint32_t i = 0; i < n; ++i) {
        const Key key = from.keys[i];
        if (full || std::make_pair(from.stamps[i], key) >= least ||
            (!anew && (index_.find(home, key) || cold_->may_have(home, key)))) {
            stay.push_back(i);
            continue;
        }
        try {
            std::byte* const record = cold_->begin_append(home);
            std::byte *const weights = cold_->weights_of(record), *const state = cold_->state_of(record);
            const float* const values = &from.rows[i * config_.dim];
            if (from.has_state) {
                update_.write(values, from.state.data() + i * update_.state_width(),
                              update_.has_steps() ? from.steps[i] : 0, weights, state);
            } else {
                update_.init(values, weights, state);
            }
            cold_->end_append(home, key, from.stamps[i]);
        } catch (const DiskFull& error) {
            note_full(error);
            full = true;
            stay.push_back(i);
            continue;
        }
        ++counts_.imported;
        ++counts_.to_disk;
    }
    return stay;
}

PushBatch Shard::recall(const PushBatch& batch, std::vector<std::uint32_t>& slots) {
    fetch(batch.keys, kMaxStep);
    slots.assign(batch.slots.begin(), batch.slots.end());
    for (std::size_t i = 0; i < slots.size(); ++i) {
        if (slots[i] == kNoSlot) continue;
        const KeyIndex::Entry entry = index_.find(bucket(batch.keys[i]), batch.keys[i]);
        if (!entry) throw std::logic_error("a row that a push is for has gone, though none may");
        slots[i] = entry.slot();
    }
    return {batch.keys, slots, batch.gradients, epoch_};  // nothing is evicted, so each has its row
}

void Shard::lookup_cold(Keys keys, Rows out) const {
    wanted_.clear();
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (slots_[i] != kNoSlot) continue;
        wanted_.push_back({bucket(keys[i]), static_cast<std::uint32_t>(i), keys[i]});
    }
    const EncodeRows encode = encode_rows(update_.weights(), out.wire, config_.dim);
    for (const auto& [wanted, row] : cold_->find(wanted_)) {
        if (eviction_.expired(row.stamp, next_step_)) continue;
        std::byte* const to = out.data + wanted.at * wire_bytes(out.wire, config_.dim);
        encode(&row.weights, 1, config_.dim, room_.data(), to);
        slots_[wanted.at] = kOnDisk;
    }
}

void Shard::sweep_cold(std::uint32_t home) {
    if (next_step_ <= eviction_.ttl()) return;
    cold_->for_each(home, 0, next_step_ - eviction_.ttl() - 1, [&](const ColdStore::Row& row) {
        if (!eviction_.expired(row.stamp, next_step_)) return true;
        if (snapshot_.active() && row.before_mark && !snapshot_.copied(home)) {
            snapshot_.keep(home, row.key, row.stamp, kNoSlot, row.weights, row.state);
        }
        if (notes_removed_) note_removed(row.key);
        if (changes_.noted()) {
            away_.erase(row.key);
            changes_.removed_before(row.key);
        }
        ++counts_.evicted;
        return false;
    });
}

// Copies the changed rows that are on disk at a mark.
void Shard::copy_away() {
    wanted_.clear();
    for (const Key key : away_) wanted_.push_back({bucket(key), 0, key});
    away_.clear();
    for (const auto& [wanted, row] : cold_->find(wanted_)) copy_changed({&wanted.key, 1}, &row.weights);
}

// What the store gives points into what its next call changes.
void Shard::hold(const ColdStore::Row& row, std::vector<Snapshot::Kept>& rows,
                 std::vector<std::byte>& held) const {
    rows.push_back({row.key, row.stamp, nullptr, nullptr});
    held.resize(held.size() + state_at() + update_.state_bytes());
    std::byte* const to = held.data() + held.size() - state_at() - update_.state_bytes();
    std::copy_n(row.weights, update_.weight_bytes(), to);
    std::copy_n(row.state, update_.state_bytes(), to + state_at());
}

void Shard::point(std::vector<Snapshot::Kept>& rows, std::size_t first,
                  const std::vector<std::byte>& held) const {
    const std::byte* from = held.data();
    for (std::size_t i = first; i < rows.size(); ++i, from += state_at() + update_.state_bytes()) {
        rows[i].weights = from;
        rows[i].state = from + state_at();
    }
}

// Adds the rows of a bucket for which chosen(row); they point into `held`.
void Shard::add_cold(std::uint32_t home, std::vector<Snapshot::Kept>& rows, std::vector<std::byte>& held,
                     std::uint32_t least, const std::function<bool(const ColdStore::Row&)>& chosen) const {
    const std::size_t first = rows.size();
    cold_->for_each(home, least, UINT32_MAX, [&](const ColdStore::Row& row) {
        if (chosen(row)) hold(row, rows, held);
        return true;
    });
    point(rows, first, held);
}

// Adds those rows of a bucket that must not be copied yet, as more may come to their extents.
void Shard::copy_cold(std::uint32_t home, std::vector<Snapshot::Kept>& rows, std::vector<std::byte>& held,
                      std::uint32_t into, CopiedRows& copied) const {
    const std::size_t first = rows.size(), record = record_bytes();
    std::vector<Snapshot::Kept> whole;
    std::vector<std::byte> room;
    const auto copy = [&](const ColdStore::Row& row) {
        const auto number = static_cast<std::uint32_t>(copied.count++);
        if (record == 0) {
            hold(row, whole, room);
            return;
        }
        copied.records.resize(copied.records.size() + record);
        cold_->copy_record(row, home, number, copied.records.data() + number * record);
    };
    cold_->for_each_marked(
        home, into,
        [&](const ColdStore::Row& row, bool copies) { copies ? copy(row) : hold(row, rows, held); },
        [&](std::uint32_t file, std::uint32_t number) {
            copied.files.push_back(file);
            copied.numbers.push_back(number);
        });
    point(rows, first, held);
    point(whole, 0, room);
    copied.rows = export_rows(whole);
}

}  // namespace persia
