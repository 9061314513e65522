#include "persia/table.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace persia {
namespace {

// Waking threads takes some 10 microseconds: what about 500 rows take.
constexpr std::size_t kMinKeysForThreads = 2048;

void check_length(const char* name, std::size_t got, std::size_t expected) {
    if (got == expected) return;
    throw std::invalid_argument(std::string(name) + ": got " + std::to_string(got) + " elements, expected " +
                                std::to_string(expected));
}

std::size_t count_wanted(Span<const std::uint8_t> wanted) {
    return wanted.size() - static_cast<std::size_t>(std::count(wanted.begin(), wanted.end(), 0));
}

}  // namespace

Table::Table(const TableConfig& config) : config_(checked(config)), bucket_of_(config.num_buckets) {
    for (std::uint32_t i = 0; i < num_shards(config); ++i) {
        shards_.push_back(std::make_unique<Shard>(shard_config(config, i)));
    }
    if (shards_.size() > 1) team_ = std::make_unique<ThreadTeam>(static_cast<unsigned>(shards_.size()));
}

void Table::check_keys(Keys keys) const {
    if (keys.empty()) return;
    const std::size_t n = keys.size();
    bool bad = bucket_of_(keys[0]) < config_.first_bucket || bucket_of_(keys[n - 1]) >= config_.end_bucket;
    for (std::size_t i = 1; i < n; ++i) bad |= bucket_of_(keys[i]) < bucket_of_(keys[i - 1]);
    if (bad) refuse_keys(keys);
}

void Table::refuse_keys(Keys keys) const {
    std::uint32_t before = config_.first_bucket;
    for (std::size_t i = 0; i < keys.size(); ++i) {
        const std::uint32_t bucket = bucket_of_(keys[i]);
        if (bucket >= before && bucket < config_.end_bucket) {
            before = bucket;
            continue;
        }
        throw std::invalid_argument("keys[" + std::to_string(i) + "] = " + std::to_string(keys[i]) +
                                    " is of bucket " + std::to_string(bucket) + ", expected buckets [" +
                                    std::to_string(config_.first_bucket) + ", " +
                                    std::to_string(config_.end_bucket) +
                                    "), in ascending order (the one before: " + std::to_string(before) + ")");
    }
}

std::vector<std::size_t> Table::cuts(Keys keys) const {
    std::vector<std::size_t> begins{0};
    for (std::size_t i = 1; i < shards_.size(); ++i) {
        const Shard& shard = *shards_[i];
        const Key* at = std::partition_point(keys.begin() + begins.back(), keys.end(),
                                             [&](Key key) { return bucket_of_(key) < shard.first_bucket(); });
        begins.push_back(static_cast<std::size_t>(at - keys.begin()));
    }
    begins.push_back(keys.size());
    return begins;
}

template <class Job>
void Table::each_shard(std::size_t num_keys, Job&& job) const {
    if (team_ && num_keys >= kMinKeysForThreads) {
        team_->run([&](unsigned i) { job(i); });
        return;
    }
    for (unsigned i = 0; i < shards_.size(); ++i) job(i);
}

std::uint32_t Table::pull(Keys keys, std::uint32_t step, Rows out, Span<std::uint32_t> slots,
                          Span<const std::uint8_t> wanted) {
    check_keys(keys);
    check_length("slots", slots.size(), keys.size());
    if (!wanted.empty()) check_length("wanted", wanted.size(), keys.size());
    check_length("rows", out.count, wanted.empty() ? keys.size() : count_wanted(wanted));
    return pull_checked(keys, step, out, slots, wanted);
}

std::uint32_t Table::pull_checked(Keys keys, std::uint32_t step, Rows out, Span<std::uint32_t> slots,
                                  Span<const std::uint8_t> wanted) {
    if (shards_.size() == 1) {
        shards_[0]->pull(keys, step, out, slots, wanted);
        return shards_[0]->epoch();
    }
    const std::vector<std::size_t> at = cuts(keys);
    std::vector<std::size_t> rows = at;  // of `out`, at which each shard's begin
    if (!wanted.empty()) {
        for (std::size_t i = 1; i < at.size(); ++i) {
            rows[i] = rows[i - 1] + count_wanted(wanted.slice(at[i - 1], at[i]));
        }
    }
    each_shard(keys.size(), [&](unsigned i) {
        const std::size_t begin = at[i], end = at[i + 1];
        shards_[i]->pull(keys.slice(begin, end), step, out.slice(rows[i], rows[i + 1], config_.dim),
                         slots.slice(begin, end), wanted.empty() ? wanted : wanted.slice(begin, end));
    });
    return shards_[0]->epoch();
}

void Table::lookup(Keys keys, Rows out) const {
    check_keys(keys);
    check_length("rows", out.count, keys.size());
    lookup_checked(keys, out);
}

void Table::lookup_checked(Keys keys, Rows out) const {
    const std::vector<std::size_t> at = cuts(keys);
    each_shard(keys.size(), [&](unsigned i) {
        shards_[i]->lookup(keys.slice(at[i], at[i + 1]), out.slice(at[i], at[i + 1], config_.dim));
    });
}

void Table::check_slots(Keys keys, Span<const std::uint32_t> slots) const {
    const auto check = [&](const Shard& shard, std::size_t begin, std::size_t until) {
        const std::uint32_t end = shard.end_slot();
        const auto unknown = [end](std::uint32_t slot) { return slot + 1 > end; };  // kNoSlot + 1 is 0
        bool bad = false;
        for (std::size_t i = begin; i < until; ++i) bad |= unknown(slots[i]);
        if (!bad) return;
        const std::uint32_t* slot = std::find_if(slots.begin() + begin, slots.begin() + until, unknown);
        throw std::invalid_argument(
            "slots[" + std::to_string(slot - slots.begin()) + "] = " + std::to_string(*slot) +
            " was never given by a pull: there are " + std::to_string(end) + " slots");
    };
    if (shards_.size() == 1) return check(*shards_[0], 0, slots.size());
    const std::vector<std::size_t> at = cuts(keys);
    for (std::size_t i = 0; i < shards_.size(); ++i) check(*shards_[i], at[i], at[i + 1]);
}

void Table::check_batch(const PushBatch& batch) const {
    check_keys(batch.keys);
    check_length("slots", batch.slots.size(), batch.keys.size());
    check_length("gradients", batch.gradients.count, batch.keys.size());
    check_slots(batch.keys, batch.slots);
}

PushCounts Table::push(const PushBatch& batch, std::uint32_t step) {
    check_batch(batch);
    return push_checked(batch, step);
}

PushCounts Table::push_step(const std::vector<PushBatch>& batches, std::uint32_t step) {
    for (const PushBatch& batch : batches) check_batch(batch);
    return push_step_checked(batches, step);
}

PushCounts Table::push_checked(const PushBatch& batch, std::uint32_t step) {
    if (shards_.size() == 1) return shards_[0]->push(batch, step);
    return push_parts({batch}, [&](Shard& shard, const std::vector<PushBatch>& parts) {
        return shard.push(parts[0], step);
    });
}

PushCounts Table::push_step_checked(const std::vector<PushBatch>& batches, std::uint32_t step) {
    if (shards_.size() == 1) return shards_[0]->push_step(batches, step);
    return push_parts(batches, [&](Shard& shard, const std::vector<PushBatch>& parts) {
        return shard.push_step(parts, step);
    });
}

template <class Push>
PushCounts Table::push_parts(const std::vector<PushBatch>& batches, Push&& push) {
    std::size_t total = 0;
    std::vector<std::vector<PushBatch>> parts(shards_.size());
    for (const PushBatch& batch : batches) {
        total += batch.keys.size();
        const std::vector<std::size_t> at = cuts(batch.keys);
        for (std::size_t i = 0; i < shards_.size(); ++i) {
            const std::size_t begin = at[i], end = at[i + 1];
            parts[i].push_back({batch.keys.slice(begin, end), batch.slots.slice(begin, end),
                                batch.gradients.slice(begin, end, config_.dim), batch.epoch});
        }
    }
    std::vector<PushCounts> counts(shards_.size());
    each_shard(total, [&](unsigned i) { counts[i] = push(*shards_[i], parts[i]); });
    PushCounts sum;
    for (const PushCounts& each : counts) sum += each;
    return sum;
}

std::uint64_t Table::evict(std::uint32_t step) {
    std::uint64_t evicted = 0;
    for (const auto& shard : shards_) evicted += shard->evict(step);
    return evicted;
}

void Table::set_lr(double lr) {
    for (const auto& shard : shards_) shard->set_lr(lr);
}

Shard& Table::shard_of(std::uint32_t bucket) const {
    for (const auto& shard : shards_) {
        if (shard->owns_bucket(bucket)) return *shard;
    }
    throw std::invalid_argument("bucket: got " + std::to_string(bucket) + ", expected one of [" +
                                std::to_string(config_.first_bucket) + ", " +
                                std::to_string(config_.end_bucket) + ")");
}

ExportedRows Table::export_bucket(std::uint32_t bucket) const {
    return shard_of(bucket).export_bucket(bucket);
}

void Table::begin_snapshot(bool full) {
    for (const auto& shard : shards_) shard->begin_snapshot(full);
    in_snapshot_ = true;
}

ExportedRows Table::snapshot_bucket(std::uint32_t bucket, std::uint32_t since, BucketState& state) {
    Shard& shard = shard_of(bucket);
    if (!in_snapshot_) throw std::logic_error("no snapshot is under way");
    return shard.snapshot_bucket(bucket, since, state);
}

std::uint64_t Table::rows_since(std::uint32_t bucket, std::uint32_t since) const {
    return shard_of(bucket).rows_since(bucket, since);
}

void Table::end_snapshot() {
    for (const auto& shard : shards_) shard->end_snapshot();
    in_snapshot_ = false;
}

std::size_t Table::snapshot_bytes() const {
    std::size_t bytes = 0;
    for (const auto& shard : shards_) bytes += shard->snapshot_bytes();
    return bytes;
}

std::vector<Key> Table::removed() const {
    std::vector<Key> keys;
    for (const auto& shard : shards_)
        keys.insert(keys.end(), shard->removed().begin(), shard->removed().end());
    return keys;
}

bool Table::can_be_incremental() const {
    return config_.eviction == "lru" && std::all_of(shards_.begin(), shards_.end(),
                                                    [](const auto& each) { return each->notes_removed(); });
}

void Table::restore_bucket(std::uint32_t bucket, const BucketState& state) {
    shard_of(bucket).restore_bucket(bucket, state);
}

void Table::set_next_step(std::uint32_t step) {
    for (const auto& shard : shards_) shard->set_next_step(step);
}

void Table::import_rows(const ImportedRows& rows) {
    const std::size_t n = rows.keys.size();
    check_length("rows", rows.rows.size(), n * config_.dim);
    check_length("stamps", rows.stamps.size(), n);
    check_length("state", rows.state.size(), rows.has_state ? n * state_width() : 0);
    check_length("steps", rows.steps.size(), rows.has_state && has_steps() ? n : 0);
    for (std::size_t i = 0; i < n; ++i) {
        check_keys(rows.keys.slice(i, i + 1));
        if (rows.stamps[i] <= kMaxStep) continue;
        throw std::invalid_argument("stamps[" + std::to_string(i) + "] = " + std::to_string(rows.stamps[i]) +
                                    ", expected at most " + std::to_string(kMaxStep));
    }
    for (const auto& shard : shards_) shard->import_rows(rows);
}

RowCounts Table::counts() const {
    RowCounts sum;
    for (const auto& shard : shards_) {
        sum.created += shard->counts().created;
        sum.imported += shard->counts().imported;
        sum.evicted += shard->counts().evicted;
    }
    return sum;
}

std::uint64_t Table::num_rows() const {
    const RowCounts sum = counts();
    return sum.created + sum.imported - sum.evicted;
}

std::uint64_t Table::memory_bytes() const {
    std::uint64_t bytes = sizeof *this;
    for (const auto& shard : shards_) bytes += shard->memory_bytes();
    return bytes;
}

}  // namespace persia
