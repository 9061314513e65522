#include "persia/shard.h"

#include <algorithm>
#include <cstring>

namespace persia {
namespace {

// Keys are worked on in blocks, one stage after the other, each stage asking for the memory that a later one
// needs. A stage per loop and not per key: where address translations miss, a prefetch waits for its own, and
// only a short loop has many of them under way at a time.
constexpr std::size_t kBlock = 16;
constexpr std::size_t kAhead = 12;          // rows, where there is one stage
constexpr std::uint32_t kSweepPeriod = 64;  // steps in which a sweep for expired rows sees each bucket once

}  // namespace

Shard::Shard(const TableConfig& config)
    : config_(config),
      update_(make_optimizer(config.optimizer, config.options), config.dim, storage_of(config.storage),
              storage_of(config.state_storage), config.value_bound, config.seed),
      init_(config.init, config.init_a, config.init_b, config.seed),
      bucket_of_(config.num_buckets),
      index_(config.end_bucket - config.first_bucket, config.bucket_capacity, arena_),
      rows_(update_.weight_bytes(), update_.state_bytes()),
      eviction_(config.eviction, config.ttl, config.end_bucket - config.first_bucket),
      admission_(config.admission, config.seed, config.end_bucket - config.first_bucket,
                 config.bucket_capacity),
      is_dirty_(config.end_bucket - config.first_bucket),
      room_(config.dim) {}

void Shard::insert(std::uint32_t bucket, Key key, std::uint32_t slot, std::uint32_t stamp) {
    index_.insert(bucket, key, slot, stamp);
    if (index_.size(bucket) > config_.bucket_capacity && !is_dirty_[bucket]) {
        dirty_.push_back(bucket);
        is_dirty_[bucket] = true;
    }
}

// The slot of a key's row, made if it must be; kNoSlot if it may not. fresh: start_row() must follow.
std::uint32_t Shard::resolve(KeyIndex::Probe probe, Key key, std::uint32_t step, bool& fresh) {
    const std::uint32_t home = probe.bucket;
    const KeyIndex::Entry entry = index_.find(probe, key);
    fresh = false;
    if (entry) {
        if (eviction_.expired(entry.stamp(), step)) {
            ++counts_.evicted;
            ++counts_.created;
            fresh = true;
        }
        eviction_.used(home, key, step, entry.stamp());
        return entry.slot();
    }
    if (!admission_.admits(home, key, step)) return kNoSlot;
    index_.reserve_one(home, arena_);
    const std::uint32_t slot = rows_.take(arena_);
    insert(home, key, slot, eviction_.first(home, key, step));
    ++counts_.created;
    fresh = true;
    return slot;
}

void Shard::start_row(Key key, std::uint32_t slot) {
    init_.fill(key, room_.data(), config_.dim);
    RowState* state = rows_.state(slot);
    state->epoch = epoch_;
    update_.init(room_.data(), rows_.weights(slot), state->optimizer());
}

const float* Shard::weights(std::uint32_t slot, float* room) const {
    const std::byte* stored = rows_.weights(slot);
    if (update_.weights() == Storage::kFp32) return reinterpret_cast<const float*>(stored);
    load(update_.weights(), stored, room, config_.dim);
    return room;
}

template <class Find, class Use>
inline void Shard::walk(const Key* keys, std::size_t n, std::uint32_t* slots, Find&& find, Use&& use) const {
    KeyIndex::Probe probes[2][kBlock];
    const std::size_t num_blocks = (n + kBlock - 1) / kBlock;
    // f(i) for the keys of a block, if there is such a block (a number below 0 is huge).
    const auto each = [&](std::size_t block, auto&& f) {
        if (block >= num_blocks) return;
        for (std::size_t i = block * kBlock; i < std::min(n, (block + 1) * kBlock); ++i) f(i);
    };
    for (std::size_t ahead = 0; ahead < num_blocks + 2; ++ahead) {
        KeyIndex::Probe* const next = probes[ahead % 2];
        KeyIndex::Probe* const now = probes[(ahead + 1) % 2];
        each(ahead, [&](std::size_t i) { next[i % kBlock] = index_.start(bucket(keys[i]), keys[i]); });
        each(ahead - 1, [&](std::size_t i) { slots[i] = find(i, now[i % kBlock]); });
        each(ahead - 1, [&](std::size_t i) {
            if (slots[i] != kNoSlot) rows_.prefetch_weights(slots[i]);
        });
        each(ahead, [&](std::size_t i) { index_.look_ahead(next[i % kBlock], keys[i]); });
        each(ahead - 2, use);
    }
}

void Shard::pull(const Key* keys, std::size_t n, std::uint32_t step, Wire wire, std::byte* out,
                 std::uint32_t* slots) {
    const std::size_t row_bytes = wire_bytes(wire, config_.dim);
    bool fresh[2 * kBlock];
    walk(
        keys, n, slots,
        [&](std::size_t i, const KeyIndex::Probe& probe) {
            return resolve(probe, keys[i], step, fresh[i % (2 * kBlock)]);
        },
        [&](std::size_t i) {
            if (slots[i] == kNoSlot) {
                std::memset(out + i * row_bytes, 0, row_bytes);
                return;
            }
            if (fresh[i % (2 * kBlock)]) start_row(keys[i], slots[i]);
            encode_row(wire, weights(slots[i], room_.data()), out + i * row_bytes, config_.dim);
        });
}

void Shard::lookup(const Key* keys, std::size_t n, Wire wire, std::byte* out) const {
    const std::size_t row_bytes = wire_bytes(wire, config_.dim);
    slots_.resize(n);
    walk(
        keys, n, slots_.data(),
        [&](std::size_t i, const KeyIndex::Probe& probe) {
            const KeyIndex::Entry entry = index_.find(probe, keys[i]);
            return entry && !eviction_.expired(entry.stamp(), next_step_) ? entry.slot() : kNoSlot;
        },
        [&](std::size_t i) {
            if (slots_[i] == kNoSlot) {
                std::memset(out + i * row_bytes, 0, row_bytes);
            } else {
                encode_row(wire, weights(slots_[i], room_.data()), out + i * row_bytes, config_.dim);
            }
        });
}

// The i-th gradient as fp32, or null if it is of no use, which is counted.
const float* Shard::usable_gradient(const PushBatch& batch, std::size_t i, PushCounts& counts) {
    if (batch.slots[i] == kNoSlot) {
        ++counts.unadmitted;
        return nullptr;
    }
    if (!still_there(batch.slots[i], batch.epoch)) {
        ++counts.evicted_in_flight;
        return nullptr;
    }
    const std::byte* packed = batch.gradients + i * wire_bytes(batch.wire, config_.dim);
    const float* gradient = decode_row(batch.wire, packed, room_.data(), config_.dim);
    if (!all_finite(gradient, config_.dim)) {
        ++counts.nonfinite;
        return nullptr;
    }
    return gradient;
}

template <class Chosen>
PushCounts Shard::push_with(Chosen& chosen, const PushBatch& batch, std::uint32_t step) {
    PushCounts counts;
    for (std::size_t i = 0; i < batch.n; ++i) {
        if (i + kAhead < batch.n && batch.slots[i + kAhead] != kNoSlot)
            rows_.prefetch_all(batch.slots[i + kAhead]);
        const float* gradient = usable_gradient(batch, i, counts);
        if (gradient == nullptr) continue;
        const std::uint32_t slot = batch.slots[i];
        update_.apply(chosen, batch.keys[i], step, rows_.weights(slot), rows_.state(slot)->optimizer(),
                      gradient);
        ++counts.applied;
    }
    return counts;
}

PushCounts Shard::push(const PushBatch& batch, std::uint32_t step) {
    return std::visit([&](auto& chosen) { return push_with(chosen, batch, step); }, update_.optimizer());
}

void Shard::add_to_sums(const PushBatch& batch, PushCounts& counts) {
    const std::uint32_t dim = config_.dim;
    const std::size_t mask = merged_map_.size() - 1;
    for (std::size_t i = 0; i < batch.n; ++i) {
        if (i + kAhead < batch.n && batch.slots[i + kAhead] != kNoSlot) {
            __builtin_prefetch(rows_.state(batch.slots[i + kAhead]));
        }
        const float* gradient = usable_gradient(batch, i, counts);
        if (gradient == nullptr) continue;
        const std::uint32_t slot = batch.slots[i];
        std::size_t at = mix(slot) & mask;
        while (merged_map_[at] != 0 && merged_[merged_map_[at] - 1].slot != slot) at = (at + 1) & mask;
        if (merged_map_[at] == 0) {
            merged_.push_back({batch.keys[i], slot, 1});
            merged_map_[at] = static_cast<std::uint32_t>(merged_.size());
            sums_.insert(sums_.end(), gradient, gradient + dim);
            continue;
        }
        ++merged_[merged_map_[at] - 1].num_batches;
        float* __restrict sum = sums_.data() + (merged_map_[at] - 1) * std::size_t{dim};
        for (std::uint32_t d = 0; d < dim; ++d) sum[d] += gradient[d];
    }
}

template <class Chosen>
void Shard::apply_sums(Chosen& chosen, std::uint32_t step, PushCounts& counts) {
    const std::uint32_t dim = config_.dim;
    for (std::size_t i = 0; i < merged_.size(); ++i) {
        if (i + kAhead < merged_.size()) rows_.prefetch_all(merged_[i + kAhead].slot);
        const auto& [key, slot, num_batches] = merged_[i];
        const float* sum = sums_.data() + i * dim;
        if (!all_finite(sum, dim)) {
            counts.nonfinite += num_batches;
            continue;
        }
        update_.apply(chosen, key, step, rows_.weights(slot), rows_.state(slot)->optimizer(), sum);
        counts.applied += num_batches;
    }
}

PushCounts Shard::push_step(const std::vector<PushBatch>& batches, std::uint32_t step) {
    std::size_t total = 0;
    for (const PushBatch& batch : batches) total += batch.n;
    std::size_t map_size = 16;
    while (map_size < 2 * total) map_size *= 2;
    merged_map_.assign(map_size, 0);
    merged_.clear();
    sums_.clear();
    PushCounts counts;
    for (const PushBatch& batch : batches) add_to_sums(batch, counts);
    std::visit([&](auto& chosen) { apply_sums(chosen, step, counts); }, update_.optimizer());
    return counts;
}

void Shard::remove(std::uint32_t bucket, KeyIndex::Entry entry) {
    rows_.give_back(entry.slot());
    index_.erase(bucket, entry);
    ++counts_.evicted;
}

void Shard::sweep(std::uint32_t step) {
    for (std::uint32_t home = 0; home < num_buckets(); ++home) {
        if ((config_.first_bucket + home) % kSweepPeriod != step % kSweepPeriod) continue;
        expired_keys_.clear();
        index_.for_each(home, [&](KeyIndex::Entry entry) {
            if (eviction_.expired(entry.stamp(), next_step_)) expired_keys_.push_back(entry.key());
        });
        for (const Key key : expired_keys_) remove(home, index_.find(home, key));
    }
}

std::uint64_t Shard::evict(std::uint32_t step) {
    next_step_ = step + 1;
    const std::uint64_t before = counts_.evicted;
    if (eviction_.ttl() != 0) sweep(step);
    for (const std::uint32_t home : dirty_) {
        is_dirty_[home] = false;
        while (index_.size(home) > config_.bucket_capacity) remove(home, eviction_.next(home, index_));
    }
    dirty_.clear();
    admission_.count_sightings(step, bucket_of_, config_.first_bucket);
    ++epoch_;
    return counts_.evicted - before;
}

ExportedRows Shard::export_bucket(std::uint32_t number) const {
    const std::uint32_t home = number - config_.first_bucket;
    std::vector<KeyIndex::Entry> sorted;
    sorted.reserve(index_.size(home));
    index_.for_each(home, [&](KeyIndex::Entry entry) {
        if (!eviction_.expired(entry.stamp(), next_step_)) sorted.push_back(entry);
    });
    std::sort(sorted.begin(), sorted.end(),
              [](const KeyIndex::Entry& a, const KeyIndex::Entry& b) { return a.key() < b.key(); });
    const std::size_t dim = config_.dim, width = update_.state_width();
    ExportedRows exported;
    exported.rows.resize(sorted.size() * dim);
    exported.state.resize(sorted.size() * width);
    if (update_.has_steps()) exported.steps.resize(sorted.size());
    for (std::size_t i = 0; i < sorted.size(); ++i) {
        exported.keys.push_back(sorted[i].key());
        exported.stamps.push_back(sorted[i].stamp());
        const std::uint32_t slot = sorted[i].slot();
        update_.read(rows_.weights(slot), rows_.state(slot)->optimizer(), exported.rows.data() + i * dim,
                     exported.state.data() + i * width, exported.steps.data() + i);
    }
    return exported;
}

void Shard::import_rows(const ImportedRows& from) {
    ++epoch_;  // gradients of earlier pulls are not for these rows
    for (std::size_t i = 0; i < from.n; ++i) {
        const Key key = from.keys[i];
        if (!owns(key)) continue;
        const std::uint32_t home = bucket(key);
        const KeyIndex::Entry entry = index_.find(home, key);
        std::uint32_t slot;
        if (entry) {
            slot = entry.slot();
            entry.stamp() = from.stamps[i];
        } else {
            index_.reserve_one(home, arena_);
            slot = rows_.take(arena_);
            insert(home, key, slot, from.stamps[i]);
            ++counts_.imported;
        }
        eviction_.restored(home, key, from.stamps[i], index_.size(home) == 1);
        RowState* state = rows_.state(slot);
        state->epoch = epoch_;
        update_.write(from.rows + i * config_.dim, from.state + i * update_.state_width(),
                      update_.has_steps() ? from.steps[i] : 0, rows_.weights(slot), state->optimizer());
    }
}

std::uint64_t Shard::memory_bytes() const {
    const auto held = [](const auto& values) { return values.capacity() * sizeof(values[0]); };
    return sizeof *this + arena_.held_bytes() + index_.held_bytes() + rows_.held_bytes() +
           eviction_.held_bytes() + admission_.held_bytes() + update_.held_bytes() + held(dirty_) +
           num_buckets() / 8 + held(room_) + held(merged_) + held(sums_) + held(merged_map_) +
           held(expired_keys_);
}

}  // namespace persia
