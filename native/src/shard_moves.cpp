// Shard's rows that go to disk, and come back, see cold_store.h.
#include <algorithm>
#include <utility>

#include "persia/prefetch.h"
#include "persia/shard.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 16;   // keys whose memory is asked for before they are looked at
constexpr unsigned kAsksSpared = 7;  // pulls that don't ask after one whose rows the system had in memory
// Before rows go so many of a bucket are chosen, and of so many buckets.
constexpr std::size_t kMostGoing = 32, kBucketsAtOnce = 32;
constexpr std::size_t kRowsAhead = 6;  // rows that come back, whose memory is asked for before they do

}  // namespace

bool Shard::demote(std::uint32_t bucket, KeyIndex::Entry entry) {
    const Snapshot::Kept row = row_at(entry);
    try {
        cold_->append(bucket, row.key, row.stamp, row.weights, row.state);
    } catch (const DiskFull& error) {
        note_full(error);
        return false;
    }
    removed_at_ = epoch_ + 1;  // the slot may be another row's then
    if (snapshot_.active()) keep_before_removal(bucket, entry);
    if (changes_.noted()) {
        keep_changed(entry.key(), entry.slot());
        if (changes_.moved(entry.slot())) away_.insert(entry.key());
    }
    drop(bucket, entry);
    ++counts_.to_disk;
    return true;
}

void Shard::note_full(const DiskFull& error) {
    if (disk_problem_.empty()) disk_problem_ = error.what();
}

// Adds to going_ the rows of a bucket that go next, and asks for their memory.
void Shard::choose_going(std::uint32_t home, std::uint32_t most) {
    if (index_.size(home) <= config_.bucket_capacity) return;
    const std::size_t over = std::min<std::size_t>(index_.size(home) - config_.bucket_capacity, kMostGoing);
    for (std::size_t i = 0; i < over; ++i) {
        const std::uint32_t age = eviction_.age(home);
        const KeyIndex::Entry entry = eviction_.next_used(home, index_, most);
        if (!entry) break;
        prefetch_cold_lines(rows_.weights(entry.slot()), rows_.weight_lines());
        prefetch_cold_lines(rows_.state(entry.slot()), rows_.state_lines());
        cold_->prefetch(home, entry.key());
        cold_->prefetch_record(home, i);
        going_.push_back({entry.key(), home, age});
    }
}

// Sends the rows that were chosen, until the disk takes no more; whether it took all, and there were any.
bool Shard::send_going(bool& full) {
    std::size_t done = 0;
    for (; done < going_.size(); ++done) {
        const auto [key, home, age] = going_[done];
        const KeyIndex::Entry entry = index_.find(home, key);
        if (!entry) continue;  // it was chosen twice
        full = full || !demote(home, entry);
        if (!full) continue;
        if (!config_.full_disk_evicts) break;
        remove(home, entry);
        ++counts_.disk_full;
    }
    const bool all = done != 0 && done == going_.size();
    for (std::size_t i = going_.size(); i-- > done;) {
        const auto [key, home, age] = going_[i];
        const KeyIndex::Entry entry = index_.find(home, key);
        if (entry) eviction_.stays(home, entry, age);
    }
    return all;
}

// Rows of many buckets are chosen before the first goes, as few of each go in a step: what one needs of
// memory comes while the others are chosen.
void Shard::shrink(std::uint32_t step) {
    const std::uint32_t most = eviction_.lfu() ? kMaxStep : step;
    std::size_t left = 0;
    bool full = false;  // once it was, it isn't asked again in this call
    for (std::size_t begin = 0, end = 0; begin < dirty_.size(); begin = end) {
        end = std::min(begin + kBucketsAtOnce, dirty_.size());
        const auto each = [&](const auto& call) {
            for (std::size_t i = begin; i < end; ++i) call(dirty_[i]);
        };
        const auto over = [&](std::uint32_t home) {
            return std::min<std::size_t>(index_.size(home) - config_.bucket_capacity, kMostGoing);
        };
        each([&](std::uint32_t home) { eviction_.ask_for_lists(home, over(home)); });
        each([&](std::uint32_t home) { eviction_.ask_for_named(home, over(home), index_); });
        do {
            going_.clear();
            each([&](std::uint32_t home) { choose_going(home, most); });
        } while (send_going(full));
        each([&](std::uint32_t home) {
            is_dirty_[home] = index_.size(home) > config_.bucket_capacity;
            if (is_dirty_[home]) dirty_[left++] = home;
        });
    }
    dirty_.resize(left);
    try {
        if (!full) cold_->tidy();
    } catch (const DiskFull& error) {
        note_full(error);
    }
}

// Writes to wanted_ which keys have no row in memory.
void Shard::want_missing(Keys keys) const {
    wanted_.clear();
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (!owns(keys[i])) continue;
        if (i + kAhead < keys.size() && owns(keys[i + kAhead])) {
            prefetch_cold_line(index_.home_line(bucket(keys[i + kAhead]), keys[i + kAhead]));
        }
        const std::uint32_t home = bucket(keys[i]);
        if (!index_.find(home, keys[i])) wanted_.push_back({home, static_cast<std::uint32_t>(i), keys[i]});
    }
}

// The same of the keys `rest`, which aren't in their home lines.
void Shard::want_missing(Keys keys, Span<const std::uint32_t> rest) const {
    wanted_.clear();
    for (std::size_t ahead = 0; ahead < rest.size() + kAhead; ++ahead) {
        if (ahead < rest.size()) ask_for_second_line(keys[rest[ahead]]);
        if (ahead < kAhead) continue;
        const std::uint32_t i = rest[ahead - kAhead], home = bucket(keys[i]);
        if (index_.find(home, keys[i])) continue;
        cold_->prefetch(home, keys[i]);
        wanted_.push_back({home, i, keys[i]});
    }
}

void Shard::fetch(Keys keys, std::uint32_t step) {
    want_missing(keys);
    fetch_wanted(step);
}

void Shard::fetch(Keys keys, Span<const std::uint32_t> rest, std::uint32_t step) {
    want_missing(keys, rest);
    fetch_wanted(step);
}

// Brings rows back as they went. Whoever calls uses each of them at once: until then eviction doesn't know
// them.
void Shard::fetch_wanted(std::uint32_t step) {
    const std::vector<ColdStore::Found>& found = cold_->find(wanted_);
    for (std::size_t i = 0; i < found.size(); ++i) {
        const auto& [wanted, row] = found[i];
        const auto [home, at, key] = wanted;
        if (i + kRowsAhead < found.size()) {
            rows_.ask_for_free(kRowsAhead);
            cold_->prefetch_extent(found[i + kRowsAhead].row.place);
        }
        index_.reserve_one(home, arena_);
        const std::uint32_t slot = rows_.take(arena_);
        std::copy_n(row.weights, update_.weight_bytes(), rows_.weights(slot));
        std::copy_n(row.state, update_.state_bytes(), rows_.state(slot));
        rows_.epoch(slot) = epoch_;
        if (notes_uses_) note_used({&slot, 1}, kMaxStep);  // what used it before it went isn't known
        if (snapshot_.active()) {
            if (row.before_mark && !snapshot_.copied(home)) {
                snapshot_.keep(home, key, row.stamp, slot, row.weights, row.state);
            }
            snapshot_.settle(slot);
        }
        if (away_.erase(key) != 0) changes_.changed(key, slot);
        insert(home, key, slot, eviction_.returned(home, key, row.stamp));
        eviction_.came(home, key, step, index_);
        cold_->erase(home, key, row.place);
        ++counts_.from_disk;
    }
}

void Shard::ask_disk(Keys keys) const {
    if (!cold_) return;
    if (asks_spared_ != 0) {
        --asks_spared_;
        return;
    }
    want_missing(keys);
    asks_spared_ = cold_->ask_for(wanted_) ? 0 : kAsksSpared;
}

}  // namespace persia
