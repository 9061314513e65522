#include "persia/shard.h"

#include <algorithm>
#include <stdexcept>

#include "persia/prefetch.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 16;          // keys whose memory is asked for before they are looked at
constexpr std::size_t kAwayBytes = 40;      // of an entry of a hash set
constexpr std::uint32_t kSweepPeriod = 64;  // steps in which a sweep for expired rows sees each bucket once

}  // namespace

Shard::Shard(const TableConfig& config)
    : config_(config),
      update_(make_optimizer(config.optimizer, config.options), config.dim, storage_of(config.storage),
              storage_of(config.state_storage), config.value_bound, config.clip_norm, config.seed),
      init_(config.init, config.init_a, config.init_b, config.seed),
      bucket_of_(config.num_buckets),
      index_(config.buckets_here(), config.bucket_capacity, arena_),
      rows_(update_.weight_bytes(), update_.state_bytes(),
            std::uint64_t{config.buckets_here()} * config.bucket_capacity),
      eviction_(config.eviction, config.ttl, config.buckets_here()),
      admission_(config.admission, config.seed, config.buckets_here(), config.bucket_capacity),
      is_dirty_(config.buckets_here()),
      snapshot_(update_.weight_bytes(), update_.state_bytes()),
      room_(config.dim) {
    if (config.disk_folder.empty()) return;
    cold_ = std::make_unique<ColdStore>(config.disk_folder, config.disk_bytes, config.buckets_here(),
                                        config.bucket_capacity, update_.weight_bytes(), update_.state_bytes(),
                                        config.first_bucket);
    // With `full_disk_evicts` those are dropped that would be without a disk.
    if (!eviction_.lfu() && !config.full_disk_evicts) eviction_.keep_used();
}

void Shard::insert(std::uint32_t bucket, Key key, std::uint32_t slot, std::uint32_t stamp) {
    index_.insert(bucket, key, slot, stamp);
    if (index_.size(bucket) > config_.bucket_capacity && !is_dirty_[bucket]) {
        dirty_.push_back(bucket);
        is_dirty_[bucket] = true;
    }
}

void Shard::remove(std::uint32_t bucket, KeyIndex::Entry entry) {
    removed_at_ = epoch_ + 1;  // of the next step; first, so that it holds if something throws
    if (snapshot_.active()) keep_before_removal(bucket, entry);
    if (notes_removed_) note_removed(entry.key());
    if (changes_.noted()) {
        keep_changed(entry.key(), entry.slot());
        changes_.removed(entry.key(), entry.slot());
    }
    drop(bucket, entry);
    ++counts_.evicted;
}

void Shard::drop(std::uint32_t bucket, KeyIndex::Entry entry) {
    rows_.give_back(entry.slot());
    index_.erase(bucket, entry);
}

void Shard::sweep(std::uint32_t step) {
    // Unsigned arithmetic wraps, and the period divides 2^32.
    const std::uint32_t first = (step - config_.first_bucket) % kSweepPeriod;
    for (std::uint32_t home = first; home < num_buckets(); home += kSweepPeriod) {
        expired_keys_.clear();
        index_.for_each(home, [&](KeyIndex::Entry entry) {
            if (eviction_.expired(entry.stamp(), next_step_)) expired_keys_.push_back(entry.key());
        });
        for (const Key key : expired_keys_) remove(home, index_.find(home, key));
        if (cold_) sweep_cold(home);
    }
}

std::uint64_t Shard::evict(std::uint32_t step) {
    next_step_ = step + 1;
    const std::uint64_t before = counts_.evicted;
    if (eviction_.ttl() != 0) sweep(step);
    if (cold_) {
        shrink(step);
    } else {
        for (const std::uint32_t home : dirty_) {
            is_dirty_[home] = false;
            while (index_.size(home) > config_.bucket_capacity) remove(home, eviction_.next(home, index_));
        }
        dirty_.clear();
    }
    admission_.count_sightings(step, bucket_of_, config_.first_bucket);
    ++epoch_;
    return counts_.evicted - before;
}

void Shard::import_rows(const ImportedRows& from) {
    if (snapshot_.active()) throw std::logic_error("rows can't be imported while a snapshot is under way");
    removed_at_ = ++epoch_;  // gradients of earlier pulls are not for these rows
    if (!cold_) {
        import_some(from);
        return;
    }
    import_beside_disk(from);
}

void Shard::import_some(const ImportedRows& from) {
    std::size_t end_of_run = 0;  // of keys of one bucket, as a checkpoint has them
    const std::size_t n = from.keys.size();
    for (std::size_t i = 0; i < n; ++i) {
        const Key key = from.keys[i];
        if (!owns(key)) continue;
        const std::uint32_t home = bucket(key);
        if (i >= end_of_run) {
            end_of_run = i + 1;
            while (end_of_run < n && bucket_of_(from.keys[end_of_run]) == bucket_of_(key)) ++end_of_run;
            index_.reserve(home, std::uint64_t{index_.size(home)} + (end_of_run - i), arena_);
        }
        if (i + kAhead < end_of_run) prefetch_cold_line(index_.home_line(home, from.keys[i + kAhead]));
        const KeyIndex::Entry entry = index_.find(home, key);
        std::uint32_t slot;
        if (entry) {
            slot = entry.slot();
            entry.stamp() = from.stamps[i];
        } else {
            slot = rows_.take(arena_);
            insert(home, key, slot, from.stamps[i]);
            ++counts_.imported;
        }
        eviction_.restored(home, key, from.stamps[i], index_.size(home) == 1);
        rows_.epoch(slot) = epoch_;
        if (changes_.noted()) {
            keep_changed(key, slot);
            changes_.changed(key, slot);
        }
        if (!from.has_state) {
            update_.init(&from.rows[i * config_.dim], rows_.weights(slot), rows_.state(slot));
            continue;
        }
        update_.write(&from.rows[i * config_.dim], from.state.data() + i * update_.state_width(),
                      update_.has_steps() ? from.steps[i] : 0, rows_.weights(slot), rows_.state(slot));
    }
}

std::uint64_t Shard::memory_bytes() const {
    const auto held = [](const auto& values) { return values.capacity() * sizeof(values[0]); };
    return sizeof *this + arena_.held_bytes() + index_.held_bytes() + rows_.held_bytes() +
           eviction_.held_bytes() + admission_.held_bytes() + update_.held_bytes() + held(dirty_) +
           snapshot_.held_bytes() + changes_.held_bytes() + held(copied_.keys) + held(copied_.rows) +
           held(copied_.removed) + held(changed_room_) + away_.size() * kAwayBytes + held(ages_at_mark_) +
           held(removed_) + held(removed_at_mark_) + num_buckets() / 8 + held(room_) + held(first_) +
           held(slots_) + held(rest_) + held(last_used_) + held(marked_) + held(merged_) + held(sums_) +
           held(merged_map_) + held(expired_keys_) + held(going_) + held(wanted_) +
           (cold_ ? cold_->held_bytes() : 0);
}

}  // namespace persia
