#include "persia/table.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace persia {
namespace {

// Beyond, what was asked for might leave the first cache again.
constexpr std::size_t kMostKeysAhead = 64;

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
    for (std::uint32_t i = 0; i < persia::num_shards(config); ++i) {
        shards_.push_back(std::make_unique<Shard>(shard_config(config, i)));
    }
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

Table::Range Table::range_of(unsigned shard, Keys keys) const {
    const auto cut = [&](unsigned i) {
        const std::uint32_t bucket = shards_[i]->first_bucket();
        return static_cast<std::size_t>(
            std::partition_point(keys.begin(), keys.end(),
                                 [&](Key key) { return bucket_of_(key) < bucket; }) -
            keys.begin());
    };
    return {shard == 0 ? 0 : cut(shard), shard + 1 == shards_.size() ? keys.size() : cut(shard + 1)};
}

template <class Job>
void Table::each_shard(std::size_t num_keys, Job&& job) const {
    if (shards_.size() > 1 && num_keys >= kMinKeysForThreads) {
        if (!team_) team_ = std::make_unique<ThreadTeam>(num_shards());
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
    each_shard(keys.size(), [&](unsigned i) { pull_shard(i, keys, step, out, slots, wanted); });
    return epoch();
}

void Table::pull_shard(unsigned shard, Keys keys, std::uint32_t step, Rows out, Span<std::uint32_t> slots,
                       Span<const std::uint8_t> wanted) {
    const auto [begin, end] = range_of(shard, keys);
    Range rows{begin, end};  // of `out`
    if (!wanted.empty()) {
        rows.begin = count_wanted(wanted.slice(0, begin));
        wanted = wanted.slice(begin, end);
        rows.end = rows.begin + count_wanted(wanted);
    }
    shards_[shard]->pull(keys.slice(begin, end), step, out.slice(rows.begin, rows.end, config_.dim),
                         slots.slice(begin, end), wanted);
}

void Table::mark_differing_shard(unsigned shard, Keys keys, std::uint32_t since, std::uint32_t used_by,
                                 Span<std::uint32_t> slots, Span<std::uint8_t> differs) {
    const auto [begin, end] = range_of(shard, keys);
    shards_[shard]->mark_differing(keys.slice(begin, end), since, used_by, slots.slice(begin, end),
                                   differs.slice(begin, end));
}

void Table::pull_again_shard(unsigned shard, Keys keys, std::uint32_t step, std::uint32_t since, bool noted,
                             Span<std::uint32_t> slots, Span<std::uint8_t> differs) {
    const auto [begin, end] = range_of(shard, keys);
    shards_[shard]->pull_again(keys.slice(begin, end), step, since, noted, slots.slice(begin, end),
                               differs.slice(begin, end));
}

void Table::encode_differing_shard(unsigned shard, Keys keys, Span<const std::uint32_t> slots,
                                   Span<const std::uint8_t> differs, std::uint32_t first,
                                   std::uint32_t* positions, Rows out) {
    const auto [begin, end] = range_of(shard, keys);
    const std::size_t before = count_wanted(differs.slice(0, begin));
    const std::size_t count = count_wanted(differs.slice(begin, end));
    shards_[shard]->encode_differing(slots.slice(begin, end), differs.slice(begin, end),
                                     first + static_cast<std::uint32_t>(begin), positions + before,
                                     out.slice(before, before + count, config_.dim));
}

void Table::say_marked_shard(unsigned shard, Keys keys, Span<const std::uint32_t> slots,
                             Span<std::uint8_t> marked) const {
    const auto [begin, end] = range_of(shard, keys);
    shards_[shard]->say_marked(slots.slice(begin, end), marked.slice(begin, end));
}

bool Table::calm() const {
    return std::all_of(shards_.begin(), shards_.end(), [](const auto& shard) { return shard->calm(); });
}

void Table::note_uses() {
    for (const auto& shard : shards_) shard->note_uses();
}

void Table::lookup(Keys keys, Rows out) const {
    check_keys(keys);
    check_length("rows", out.count, keys.size());
    each_shard(keys.size(), [&](unsigned i) { lookup_shard(i, keys, out); });
}

void Table::lookup_shard(unsigned shard, Keys keys, Rows out, Span<std::uint32_t> slots) const {
    const auto [begin, end] = range_of(shard, keys);
    if (!slots.empty()) slots = slots.slice(begin, end);
    shards_[shard]->lookup(keys.slice(begin, end), out.slice(begin, end, config_.dim), slots);
}

void Table::check_slots(Keys keys, Span<const std::uint32_t> slots) const {
    check_length("slots", slots.size(), keys.size());
    for (unsigned shard = 0; shard < shards_.size(); ++shard) {
        const std::uint32_t end_slot = shards_[shard]->end_slot();
        const auto unknown = [&](std::uint32_t slot) { return slot + 1 > end_slot; };  // kNoSlot + 1 is 0
        const auto [begin, end] = range_of(shard, keys);
        const auto mine = slots.slice(begin, end);
        bool bad = false;
        for (const std::uint32_t slot : mine) bad |= unknown(slot);
        if (!bad) continue;
        const std::uint32_t* slot = std::find_if(mine.begin(), mine.end(), unknown);
        throw std::invalid_argument(
            "slots[" + std::to_string(slot - slots.begin()) + "] = " + std::to_string(*slot) +
            " was never given by a pull: there are " + std::to_string(end_slot) + " slots");
    }
}

PushCounts Table::push(const PushBatch& batch, std::uint32_t step) { return push_step({batch}, step); }

PushCounts Table::push_step(const std::vector<PushBatch>& batches, std::uint32_t step) {
    std::size_t total = 0;
    for (const PushBatch& batch : batches) {
        check_keys(batch.keys);
        check_slots(batch.keys, batch.slots);
        check_length("gradients", batch.gradients.count, batch.keys.size());
        total += batch.keys.size();
    }
    std::vector<PushCounts> counts(shards_.size());
    each_shard(total, [&](unsigned i) { counts[i] = push_shard(i, batches, step); });
    PushCounts sum;
    for (const PushCounts& each : counts) sum += each;
    return sum;
}

PushCounts Table::push_shard(unsigned shard, Span<const PushBatch> batches, std::uint32_t step,
                             PushPart part_of_step) {
    std::vector<std::vector<std::uint32_t>> slots(shards_[shard]->recalls() ? batches.size() : 0);
    const auto part = [&](std::size_t i) -> PushBatch {
        const PushBatch& batch = batches[i];
        const auto [begin, end] = range_of(shard, batch.keys);
        const PushBatch mine{batch.keys.slice(begin, end), batch.slots.slice(begin, end),
                             batch.gradients.slice(begin, end, config_.dim), batch.epoch};
        return slots.empty() ? mine : shards_[shard]->recall(mine, slots[i]);
    };
    if (batches.size() == 1) return shards_[shard]->push(part(0), step, part_of_step);
    std::vector<PushBatch> parts;
    for (std::size_t i = 0; i < batches.size(); ++i) parts.push_back(part(i));
    return shards_[shard]->push_step(parts, step, part_of_step);
}

void Table::ask_for_lines(unsigned shard, Keys keys) const {
    const auto [begin, end] = range_of(shard, keys);
    if (end - begin <= kMostKeysAhead) shards_[shard]->ask_for_lines(keys.slice(begin, end));
}

void Table::ask_for_rows(unsigned shard, Keys keys) const {
    const auto [begin, end] = range_of(shard, keys);
    if (end - begin <= kMostKeysAhead) shards_[shard]->ask_for_rows(keys.slice(begin, end));
}

void Table::ask_for_slots(unsigned shard, Keys keys, Span<const std::uint32_t> slots) const {
    const auto [begin, end] = range_of(shard, keys);
    if (end - begin <= kMostKeysAhead) shards_[shard]->ask_for_slots(slots.slice(begin, end));
}

void Table::ask_disk(Keys keys) const {
    for (unsigned shard = 0; shard < shards_.size(); ++shard) {
        const auto [begin, end] = range_of(shard, keys);
        shards_[shard]->ask_disk(keys.slice(begin, end));
    }
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

ExportedRows Table::snapshot_bucket(std::uint32_t bucket, std::uint32_t since, BucketState& state,
                                    std::uint32_t into, CopiedRows* copied) {
    Shard& shard = shard_of(bucket);
    if (!in_snapshot_) throw std::logic_error("no snapshot is under way");
    return shard.snapshot_bucket(bucket, since, state, into, copied);
}

void Table::keep_copies(Span<const std::uint32_t> files) {
    for (const auto& shard : shards_) shard->keep_copies(files);
}

std::map<std::uint32_t, std::uint64_t> Table::copied_rows() const {
    std::map<std::uint32_t, std::uint64_t> rows;
    for (const auto& shard : shards_) shard->add_copied(rows);
    return rows;
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

void Table::begin_changes() {
    for (const auto& shard : shards_) shard->begin_changes();
}

void Table::mark_changes(RowFormat format) {
    for (const auto& shard : shards_) shard->mark_changes(format);
}

bool Table::copy_changes(std::size_t most) {
    return std::any_of(shards_.begin(), shards_.end(),
                       [&](const auto& each) { return each->copy_changes(most); });
}

void Table::take_changes(ChangedRows& to) {
    for (const auto& shard : shards_) shard->take_changes(to);
}

void Table::return_changes(Keys changed, Keys removed) {
    for (const auto& shard : shards_) shard->return_changes(changed, removed);
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

bool Table::adopt_rows(const SharedRows& rows) {
    if (!std::all_of(shards_.begin(), shards_.end(), [&](const auto& each) { return each->can_adopt(rows); }))
        return false;
    each_shard(kMinKeysForThreads, [&](unsigned i) { shards_[i]->adopt(rows); });
    return true;
}

RowCounts Table::counts() const {
    RowCounts sum;
    for (const auto& shard : shards_) {
        sum.created += shard->counts().created;
        sum.imported += shard->counts().imported;
        sum.evicted += shard->counts().evicted;
        sum.to_disk += shard->counts().to_disk;
        sum.from_disk += shard->counts().from_disk;
        sum.disk_full += shard->counts().disk_full;
    }
    return sum;
}

std::uint64_t Table::num_rows() const {
    const RowCounts sum = counts();
    return sum.created + sum.imported - sum.evicted;
}

std::uint64_t Table::cold_rows() const {
    std::uint64_t rows = 0;
    for (const auto& shard : shards_) rows += shard->cold_rows();
    return rows;
}

std::uint64_t Table::disk_bytes() const {
    std::uint64_t bytes = 0;
    for (const auto& shard : shards_) bytes += shard->disk_bytes();
    return bytes;
}

std::string Table::disk_problem() const {
    for (const auto& shard : shards_) {
        if (!shard->disk_problem().empty()) return shard->disk_problem();
    }
    return {};
}

std::uint64_t Table::memory_bytes() const {
    std::uint64_t bytes = sizeof *this;
    for (const auto& shard : shards_) bytes += shard->memory_bytes();
    return bytes;
}

}  // namespace persia
