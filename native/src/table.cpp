#include "persia/table.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace persia {
namespace {

// Software prefetch in two stages, because reading the index is what says where the row is. Distances in
// rows.
constexpr std::size_t kIndexAhead = 16;
constexpr std::size_t kRowAhead = 8;
static_assert((kRowAhead & (kRowAhead - 1)) == 0);

TableConfig checked(const TableConfig& config) {
    const auto refuse = [](const std::string& text) { throw std::invalid_argument(text); };
    const auto number = [](std::uint32_t value) { return std::to_string(value); };
    if (config.dim == 0 || config.dim > (1u << 20)) {
        refuse("dim: got " + number(config.dim) + ", expected 1 to 2^20");
    }
    if (config.num_buckets == 0 || (config.num_buckets & (config.num_buckets - 1)) != 0) {
        refuse("num_buckets: got " + number(config.num_buckets) + ", expected a power of two");
    }
    if (config.first_bucket > config.end_bucket || config.end_bucket > config.num_buckets) {
        refuse("buckets: got [" + number(config.first_bucket) + ", " + number(config.end_bucket) +
               "), expected a range within [0, " + number(config.num_buckets) + ")");
    }
    if (config.bucket_capacity == 0) refuse("bucket_capacity: got 0, expected at least 1 row");
    return config;
}

void store(const float* row, float* out, std::uint32_t dim) { std::memcpy(out, row, dim * sizeof *row); }
void store(const float* row, Half* out, std::uint32_t dim) { encode_half(row, out, dim); }

// The gradient as fp32, in place where it is.
const float* widen(const float* from, float*, std::uint32_t) { return from; }
const float* widen(const Half* from, float* room, std::uint32_t dim) {
    decode_half(from, room, dim);
    return room;
}

bool still_there(const Row* row, Key key, std::uint32_t step) { return row->key == key && row->born <= step; }

void prefetch(const Row* row, std::size_t bytes) {
    const char* line = reinterpret_cast<const char*>(row);
    for (std::size_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(line + offset, 1);
    __builtin_prefetch(line + bytes - 1, 1);
}

}  // namespace

Table::Table(const TableConfig& config)
    : config_(checked(config)),
      optimizer_(make_optimizer(config.optimizer, config.options)),
      init_(config.init, config.init_a, config.init_b, config.seed),
      bucket_of_(config.num_buckets),
      state_width_(persia::state_width(optimizer_, config.dim)),
      has_steps_(persia::has_steps(optimizer_)),
      layout_(config.dim, persia::state_words(optimizer_, config.dim)),
      buckets_(config.end_bucket - config.first_bucket),
      gradient_(config.dim) {}

void Table::check_keys(const Key* keys, std::size_t n) const {
    const std::uint32_t first = config_.first_bucket;
    const std::uint32_t count = config_.end_bucket - first;
    for (std::size_t i = 0; i < n; ++i) {
        if (bucket_of_(keys[i]) - first >= count) {
            throw std::invalid_argument("keys[" + std::to_string(i) + "] = " + std::to_string(keys[i]) +
                                        " is of bucket " + std::to_string(bucket_of_(keys[i])) +
                                        ", expected buckets [" + std::to_string(first) + ", " +
                                        std::to_string(config_.end_bucket) + ")");
        }
    }
}

template <class T>
void Table::check_slots(const PushBatch<T>& batch) const {
    check_keys(batch.keys, batch.n);
    for (std::size_t i = 0; i < batch.n; ++i) {
        const std::uint32_t end = bucket(batch.keys[i]).rows().end_slot();
        if (batch.slots[i] >= end) {
            throw std::invalid_argument(
                "slots[" + std::to_string(i) + "] = " + std::to_string(batch.slots[i]) +
                " was never given by a pull: the key's bucket has " + std::to_string(end) + " slots");
        }
    }
}

std::uint32_t Table::insert(Bucket& into, Key key, std::uint32_t step) {
    if (into.num_rows() >= config_.bucket_capacity && !into.dirty) {
        dirty_.push_back(static_cast<std::uint32_t>(&into - buckets_.data()));
        into.dirty = true;
    }
    return into.insert(key, step, layout_, arena_);
}

std::uint32_t Table::find(const Bucket& home, Key key, std::uint32_t likely_slot) const {
    if (likely_slot != BucketIndex::kNone && home.rows().at(likely_slot, layout_)->key == key) {
        return likely_slot;
    }
    return home.find(key, layout_);
}

std::uint32_t Table::find_or_create(Bucket& home, Key key, std::uint32_t likely_slot, std::uint32_t step) {
    std::uint32_t slot = find(home, key, likely_slot);
    if (slot != BucketIndex::kNone) return slot;
    slot = insert(home, key, step);
    float* data = home.rows().at(slot, layout_)->data();
    init_.fill(key, data, layout_.dim);
    std::visit([&](const auto& kind) { kind.init(data + layout_.dim, layout_.dim); }, optimizer_);
    ++created_rows_;
    return slot;
}

std::uint32_t Table::prefetch_likely(Key key) const {
    const Bucket& home = bucket(key);
    const std::uint32_t slot = home.index().find(tag_of(key), [](std::uint32_t) { return true; });
    if (slot != BucketIndex::kNone) {
        prefetch(home.rows().at(slot, layout_), sizeof(Row) + layout_.dim * sizeof(float));
    }
    return slot;
}

template <class T>
void Table::pull(const Key* keys, std::size_t n, std::uint32_t step, T* out, std::uint32_t* slots) {
    check_keys(keys, n);
    const std::uint32_t dim = layout_.dim;
    std::uint32_t likely[kRowAhead];
    for (std::size_t ahead = 0; ahead < n + kIndexAhead; ++ahead) {
        if (ahead < n) bucket(keys[ahead]).index().prefetch(tag_of(keys[ahead]));
        if (ahead >= kIndexAhead) {
            const std::size_t i = ahead - kIndexAhead;
            Bucket& home = bucket(keys[i]);
            slots[i] = find_or_create(home, keys[i], likely[i % kRowAhead], step);
            Row* row = home.rows().at(slots[i], layout_);
            home.touch(row, step);
            store(row->data(), out + i * dim, dim);
        }
        const std::size_t next = ahead - (kIndexAhead - kRowAhead);  // huge while there is none yet
        if (next < n) likely[next % kRowAhead] = prefetch_likely(keys[next]);
    }
}

template <class T>
void Table::lookup(const Key* keys, std::size_t n, T* out) const {
    check_keys(keys, n);
    const std::uint32_t dim = layout_.dim;
    std::uint32_t likely[kRowAhead];
    for (std::size_t ahead = 0; ahead < n + kIndexAhead; ++ahead) {
        if (ahead < n) bucket(keys[ahead]).index().prefetch(tag_of(keys[ahead]));
        if (ahead >= kIndexAhead) {
            const std::size_t i = ahead - kIndexAhead;
            const Bucket& home = bucket(keys[i]);
            const std::uint32_t slot = find(home, keys[i], likely[i % kRowAhead]);
            if (slot == BucketIndex::kNone) {
                std::memset(out + i * dim, 0, dim * sizeof(T));
            } else {
                store(home.rows().at(slot, layout_)->data(), out + i * dim, dim);
            }
        }
        const std::size_t next = ahead - (kIndexAhead - kRowAhead);
        if (next < n) likely[next % kRowAhead] = prefetch_likely(keys[next]);
    }
}

template <class Optimizer, class T>
PushCounts Table::push_with(Optimizer& optimizer, const PushBatch<T>& batch, std::uint32_t step) {
    PushCounts counts;
    const std::uint32_t dim = layout_.dim;
    const std::size_t used_bytes = sizeof(Row) + (dim + layout_.state_words) * sizeof(float);
    for (std::size_t ahead = 0; ahead < batch.n + kRowAhead; ++ahead) {
        if (ahead < batch.n) {
            prefetch(bucket(batch.keys[ahead]).rows().at(batch.slots[ahead], layout_), used_bytes);
        }
        if (ahead < kRowAhead) continue;
        const std::size_t i = ahead - kRowAhead;
        Row* row = bucket(batch.keys[i]).rows().at(batch.slots[i], layout_);
        if (!still_there(row, batch.keys[i], step)) {
            ++counts.evicted_in_flight;
            continue;
        }
        const float* gradient = widen(batch.gradients + i * dim, gradient_.data(), dim);
        if (!all_finite(gradient, dim)) {
            ++counts.nonfinite;
            continue;
        }
        optimizer.apply(row->data(), row->data() + dim, gradient, dim);
        ++counts.applied;
    }
    return counts;
}

template <class T>
PushCounts Table::push(const PushBatch<T>& batch, std::uint32_t step) {
    check_slots(batch);
    return std::visit([&](auto& optimizer) { return push_with(optimizer, batch, step); }, optimizer_);
}

template <class T>
void Table::add_to_sums(const PushBatch<T>& batch, std::uint32_t step, PushCounts& counts) {
    const std::uint32_t dim = layout_.dim;
    const std::size_t mask = merged_map_.size() - 1;
    for (std::size_t ahead = 0; ahead < batch.n + kRowAhead; ++ahead) {
        if (ahead < batch.n) {
            __builtin_prefetch(bucket(batch.keys[ahead]).rows().at(batch.slots[ahead], layout_));
        }
        if (ahead < kRowAhead) continue;
        const std::size_t i = ahead - kRowAhead;
        Row* row = bucket(batch.keys[i]).rows().at(batch.slots[i], layout_);
        if (!still_there(row, batch.keys[i], step)) {
            ++counts.evicted_in_flight;
            continue;
        }
        const float* gradient = widen(batch.gradients + i * dim, gradient_.data(), dim);
        if (!all_finite(gradient, dim)) {
            ++counts.nonfinite;
            continue;
        }
        std::size_t at = mix(batch.keys[i]) & mask;
        while (merged_map_[at] != 0 && merged_[merged_map_[at] - 1].row != row) at = (at + 1) & mask;
        if (merged_map_[at] == 0) {
            merged_.push_back({row, 1});
            merged_map_[at] = static_cast<std::uint32_t>(merged_.size());
            sums_.insert(sums_.end(), gradient, gradient + dim);
            continue;
        }
        Merged& entry = merged_[merged_map_[at] - 1];
        ++entry.num_batches;
        float* __restrict sum = sums_.data() + (merged_map_[at] - 1) * std::size_t{dim};
        for (std::uint32_t d = 0; d < dim; ++d) sum[d] += gradient[d];
    }
}

template <class Optimizer>
void Table::apply_sums(Optimizer& optimizer, PushCounts& counts) {
    const std::uint32_t dim = layout_.dim;
    const std::size_t used_bytes = sizeof(Row) + (dim + layout_.state_words) * sizeof(float);
    for (std::size_t i = 0; i < merged_.size(); ++i) {
        if (i + kRowAhead < merged_.size()) prefetch(merged_[i + kRowAhead].row, used_bytes);
        const float* sum = sums_.data() + i * dim;
        if (!all_finite(sum, dim)) {
            counts.nonfinite += merged_[i].num_batches;
            continue;
        }
        optimizer.apply(merged_[i].row->data(), merged_[i].row->data() + dim, sum, dim);
        counts.applied += merged_[i].num_batches;
    }
}

template <class T>
PushCounts Table::push_step(const std::vector<PushBatch<T>>& batches, std::uint32_t step) {
    std::size_t total = 0;
    for (const PushBatch<T>& batch : batches) {
        check_slots(batch);
        total += batch.n;
    }
    std::size_t map_size = 16;
    while (map_size < 2 * total) map_size *= 2;
    merged_map_.assign(map_size, 0);
    merged_.clear();
    sums_.clear();
    PushCounts counts;
    for (const PushBatch<T>& batch : batches) add_to_sums(batch, step, counts);
    std::visit([&](auto& optimizer) { apply_sums(optimizer, counts); }, optimizer_);
    return counts;
}

std::uint64_t Table::evict() {
    std::uint64_t evicted = 0;
    for (const std::uint32_t index : dirty_) {
        buckets_[index].dirty = false;
        evicted += buckets_[index].evict(config_.bucket_capacity, layout_, scratch_);
    }
    dirty_.clear();
    evicted_rows_ += evicted;
    return evicted;
}

ExportedRows Table::export_bucket(std::uint32_t index) const {
    if (index < config_.first_bucket || index >= config_.end_bucket) {
        throw std::invalid_argument("bucket: got " + std::to_string(index) + ", expected one of [" +
                                    std::to_string(config_.first_bucket) + ", " +
                                    std::to_string(config_.end_bucket) + ")");
    }
    const Bucket& bucket = buckets_[index - config_.first_bucket];
    std::vector<const Row*> sorted;
    sorted.reserve(bucket.num_rows());
    bucket.index().for_each_slot(
        [&](std::uint32_t slot) { sorted.push_back(bucket.rows().at(slot, layout_)); });
    std::sort(sorted.begin(), sorted.end(), [](const Row* a, const Row* b) { return a->key < b->key; });

    ExportedRows exported;
    exported.keys.reserve(sorted.size());
    exported.stamps.reserve(sorted.size());
    exported.rows.reserve(sorted.size() * layout_.dim);
    exported.state.reserve(sorted.size() * state_width_);
    for (const Row* row : sorted) {
        const float* state = row->data() + layout_.dim;
        exported.keys.push_back(row->key);
        exported.stamps.push_back(row->stamp);
        exported.rows.insert(exported.rows.end(), row->data(), state);
        exported.state.insert(exported.state.end(), state, state + state_width_);
        if (!has_steps_) continue;
        std::uint32_t steps;
        std::memcpy(&steps, state + state_width_, sizeof steps);
        exported.steps.push_back(steps);
    }
    return exported;
}

void Table::import_rows(const Key* keys, std::size_t n, const float* rows, const float* state,
                        const std::uint32_t* stamps, const std::uint32_t* steps) {
    check_keys(keys, n);
    const std::uint32_t dim = layout_.dim;
    for (std::size_t i = 0; i < n; ++i) {
        if (stamps[i] > kMaxStep) {
            throw std::invalid_argument("stamps[" + std::to_string(i) + "] = " + std::to_string(stamps[i]) +
                                        ", expected at most " + std::to_string(kMaxStep));
        }
    }
    for (std::size_t i = 0; i < n; ++i) {
        Bucket& home = bucket(keys[i]);
        std::uint32_t slot = home.find(keys[i], layout_);
        if (slot == BucketIndex::kNone) {
            slot = insert(home, keys[i], stamps[i]);
            ++imported_rows_;
        }
        Row* row = home.rows().at(slot, layout_);
        home.restore(row, stamps[i]);
        std::memcpy(row->data(), rows + i * dim, dim * sizeof(float));
        float* into = row->data() + dim;
        if (state_width_ != 0) std::memcpy(into, state + i * state_width_, state_width_ * sizeof(float));
        if (has_steps_) std::memcpy(into + state_width_, steps + i, sizeof *steps);
    }
}

std::uint64_t Table::memory_bytes() const {
    const auto held = [](const auto& values) { return values.capacity() * sizeof(values[0]); };
    std::uint64_t bytes = sizeof *this + arena_.held_bytes() + held(buckets_) + held(dirty_) +
                          held(scratch_) + held(gradient_) + held(merged_) + held(sums_) + held(merged_map_);
    if (const Adam* adam = std::get_if<Adam>(&optimizer_)) bytes += adam->held_bytes();
    for (const Bucket& bucket : buckets_) bytes += bucket.held_bytes();
    return bytes;
}

template void Table::pull(const Key*, std::size_t, std::uint32_t, float*, std::uint32_t*);
template void Table::pull(const Key*, std::size_t, std::uint32_t, Half*, std::uint32_t*);
template void Table::lookup(const Key*, std::size_t, float*) const;
template void Table::lookup(const Key*, std::size_t, Half*) const;
template PushCounts Table::push(const PushBatch<float>&, std::uint32_t);
template PushCounts Table::push(const PushBatch<Half>&, std::uint32_t);
template PushCounts Table::push_step(const std::vector<PushBatch<float>>&, std::uint32_t);
template PushCounts Table::push_step(const std::vector<PushBatch<Half>>&, std::uint32_t);

}  // namespace persia
