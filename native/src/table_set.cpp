#include "persia/table_set.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace persia {
namespace {

constexpr std::size_t kAhead = 4;   // tables whose memory is asked for before they are worked on
constexpr std::size_t kThen = 2;    // and how many later for what depends on the first
constexpr std::size_t kChunks = 4;  // of the tables, for each thread

void check_length(const std::string& name, std::size_t got, std::size_t expected) {
    if (got == expected) return;
    throw std::invalid_argument(name + ": got " + std::to_string(got) + ", expected " +
                                std::to_string(expected));
}

std::uint64_t sum(Span<const std::uint32_t> counts) {
    return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
}

// Says of which table an error is.
template <class Check>
void check_table(std::uint32_t table, Check&& check) {
    try {
        check();
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument("table " + std::to_string(table) + ": " + error.what());
    }
}

}  // namespace

TableSet::TableSet(std::vector<std::shared_ptr<SharedTable>> tables, std::vector<std::uint32_t> groups,
                   std::vector<std::uint32_t> dims, unsigned threads, bool ahead)
    : tables_(std::move(tables)), groups_(std::move(groups)), dims_(std::move(dims)) {
    check_length("dim groups of tables", groups_.size(), tables_.size());
    unsigned most_shards = 1;
    for (std::uint32_t t = 0; t < tables_.size(); ++t) {
        if (groups_[t] >= dims_.size()) {
            throw std::invalid_argument("groups[" + std::to_string(t) + "] = " + std::to_string(groups_[t]) +
                                        ", but there are " + std::to_string(dims_.size()) + " dim groups");
        }
        if (!tables_[t]) continue;
        if (ahead) tables_[t]->table.note_uses();
        most_shards = std::max(most_shards, tables_[t]->table.num_shards());
        check_length("dim of table " + std::to_string(t), tables_[t]->table.dim(), dims_[groups_[t]]);
    }
    by_shards_ = most_shards > 1;
    if (by_shards_) threads = most_shards;
    if (threads > 1) team_ = std::make_unique<ThreadTeam>(threads);
}

template <class Each, class Size, class Ask, class Then, class Use>
void TableSet::work(const std::vector<Each>& parts, Size&& size_of, Ask&& ask, Then&& then, Use&& use) const {
    std::size_t num_keys = 0;
    for (const Each& part : parts) num_keys += size_of(part);
    std::vector<std::unique_lock<std::mutex>> locks(parts.size());
    const auto lock = [&](std::size_t i) { locks[i] = std::unique_lock(tables_[parts[i].table]->mutex); };
    // Shards [first, end) of each table, whose memory is asked for a few tables ahead: with few keys there is
    // no time to wait for it. Of parts [from, to).
    const auto pass = [&](std::size_t from, std::size_t to, unsigned first, unsigned end, auto&& enter,
                          auto&& leave) {
        const auto each_shard = [&](std::size_t i, auto&& call) {
            Table& table = tables_[parts[i].table]->table;
            for (unsigned s = first; s < std::min(end, table.num_shards()); ++s) call(table, s, parts[i]);
        };
        for (std::size_t i = from; i < to + kAhead; ++i) {
            if (i < to) {
                enter(i);
                each_shard(i, ask);
            }
            if (i >= from + kThen && i - kThen < to) each_shard(i - kThen, then);
            if (i < from + kAhead) continue;
            each_shard(i - kAhead, use);
            leave(i - kAhead);
        }
    };
    if (!team_ || num_keys < Table::kMinKeysForThreads) {
        pass(0, parts.size(), 0, UINT_MAX, lock, [&](std::size_t i) { locks[i].unlock(); });
        return;
    }
    const std::lock_guard<std::mutex> mine(team_mutex_);
    if (!by_shards_) {
        // A chunk has the tables whose middle key is in its share of the keys. There are several for each
        // thread, which takes the next one when it is through: one that begins late holds up nobody.
        const std::size_t chunks = team_->size() * kChunks;
        std::vector<std::size_t> first(chunks + 1, parts.size());
        first[0] = 0;
        std::size_t before = 0;
        for (std::size_t i = 0, chunk = 1; i < parts.size(); ++i) {
            const std::size_t size = size_of(parts[i]);
            while (chunk < chunks && (before + size / 2) * chunks >= num_keys * chunk) first[chunk++] = i;
            before += size;
        }
        std::atomic<std::size_t> next{0};
        team_->run([&](unsigned) {
            for (std::size_t chunk; (chunk = next.fetch_add(1)) < chunks;) {
                pass(first[chunk], first[chunk + 1], 0, UINT_MAX, lock,
                     [&](std::size_t i) { locks[i].unlock(); });
            }
        });
        return;
    }
    for (std::size_t i = 0; i < parts.size(); ++i) lock(i);
    std::vector<std::atomic<unsigned>> done(parts.size());  // threads that are through with a table
    std::size_t unlocked = 0;
    team_->run([&](unsigned thread) {
        pass(
            0, parts.size(), thread, thread + 1, [](std::size_t) {},
            [&](std::size_t i) {
                done[i].fetch_add(1, std::memory_order_release);
                if (thread != 0) return;
                while (unlocked <= i && done[unlocked].load(std::memory_order_acquire) == team_->size()) {
                    locks[unlocked++].unlock();
                }
            });
    });
}

template <class Use>
void TableSet::work_on_keys(const RecordKeys& of, const std::vector<Part>& parts, Use&& use) const {
    const auto keys = [&](const Part& part) { return of.keys.slice(part.begin, part.end); };
    work(
        parts, [](const Part& part) { return part.end - part.begin; },
        [&](const Table& table, unsigned shard, const Part& part) { table.ask_for_lines(shard, keys(part)); },
        [&](const Table& table, unsigned shard, const Part& part) { table.ask_for_rows(shard, keys(part)); },
        [&](Table& table, unsigned shard, const Part& part) { use(table, shard, keys(part), part); });
}

std::vector<TableSet::Part> TableSet::parts_of(Span<const std::uint32_t> counts,
                                               Span<const std::uint8_t> wanted) const {
    check_length("counts", counts.size(), tables_.size());
    if (!wanted.empty()) check_length("wanted", wanted.size(), sum(counts));
    std::vector<Part> parts;
    parts.reserve(tables_.size());
    std::vector<std::size_t> rows(dims_.size());
    std::size_t begin = 0;
    for (std::uint32_t t = 0; t < tables_.size(); ++t) {
        if (counts[t] == 0) continue;
        if (!tables_[t]) {
            throw std::invalid_argument("counts[" + std::to_string(t) + "] = " + std::to_string(counts[t]) +
                                        ", expected 0: this server has no buckets of that table");
        }
        const std::size_t end = begin + counts[t];
        std::size_t count = counts[t];
        if (!wanted.empty()) {
            count -= static_cast<std::size_t>(std::count(wanted.begin() + begin, wanted.begin() + end, 0));
        }
        std::size_t& at = rows[groups_[t]];
        parts.push_back({t, begin, end, at, at + count});
        at += count;
        begin = end;
    }
    return parts;
}

std::vector<std::uint64_t> TableSet::row_counts(Span<const std::uint32_t> counts,
                                                Span<const std::uint8_t> wanted) const {
    std::vector<std::uint64_t> rows(dims_.size());
    for (const Part& part : parts_of(counts, wanted)) rows[groups_[part.table]] = part.rows_end;
    return rows;
}

template <class Block>
std::vector<TableSet::Part> TableSet::checked_parts(const RecordKeys& of, Span<const std::uint8_t> wanted,
                                                    const std::vector<Block>& blocks) const {
    check_length("keys (counts say how many)", of.keys.size(), sum(of.counts));
    std::vector<Part> parts = parts_of(of.counts, wanted);
    check_length("dim groups", blocks.size(), dims_.size());
    std::vector<std::size_t> rows(dims_.size());
    for (const Part& part : parts) rows[groups_[part.table]] = part.rows_end;
    for (std::size_t g = 0; g < dims_.size(); ++g) {
        check_length("rows of dim group " + std::to_string(g), blocks[g].count, rows[g]);
    }
    for (const Part& part : parts) {
        check_table(part.table,
                    [&] { tables_[part.table]->table.check_keys(of.keys.slice(part.begin, part.end)); });
    }
    return parts;
}

template <class Block>
Block TableSet::rows_of(const Part& part, const std::vector<Block>& blocks) const {
    const std::uint32_t group = groups_[part.table];
    return blocks[group].slice(part.rows_begin, part.rows_end, dims_[group]);
}

void TableSet::pull(const RecordKeys& of, std::uint32_t step, const std::vector<Rows>& out,
                    Span<std::uint32_t> slots, Span<const std::uint8_t> wanted, Span<std::uint32_t> epochs) {
    const std::vector<Part> parts = checked_parts(of, wanted, out);
    check_length("slots", slots.size(), of.keys.size());
    check_length("epochs", epochs.size(), tables_.size());
    std::fill(epochs.begin(), epochs.end(), 0u);
    work_on_keys(of, parts, [&](Table& table, unsigned shard, Keys keys, const Part& part) {
        if (shard == 0) epochs[part.table] = table.epoch();
        table.pull_shard(shard, keys, step, rows_of(part, out), slots.slice(part.begin, part.end),
                         wanted.empty() ? wanted : wanted.slice(part.begin, part.end));
    });
}

void TableSet::lookup(const RecordKeys& of, const std::vector<Rows>& out) const {
    const std::vector<Part> parts = checked_parts(of, {}, out);
    work_on_keys(of, parts, [&](const Table& table, unsigned shard, Keys keys, const Part& part) {
        table.lookup_shard(shard, keys, rows_of(part, out));
    });
}

void TableSet::look_ahead(const RecordKeys& of, const std::vector<Rows>& out,
                          Span<std::uint32_t> slots) const {
    const std::vector<Part> parts = checked_parts(of, {}, out);
    check_length("slots", slots.size(), of.keys.size());
    work_on_keys(of, parts, [&](const Table& table, unsigned shard, Keys keys, const Part& part) {
        table.lookup_shard(shard, keys, rows_of(part, out), slots.slice(part.begin, part.end));
    });
}

void TableSet::mark_differing(const RecordKeys& of, std::uint32_t since, std::uint32_t used_by,
                              Span<std::uint32_t> slots, Span<std::uint8_t> differs) {
    work_on_keys(of, parts_of(of.counts, {}), [&](Table& table, unsigned shard, Keys keys, const Part& part) {
        table.mark_differing_shard(shard, keys, since, used_by, slots.slice(part.begin, part.end),
                                   differs.slice(part.begin, part.end));
    });
}

void TableSet::pull_again(const RecordKeys& of, std::uint32_t step, std::uint32_t since, bool noted,
                          Span<std::uint32_t> slots, Span<std::uint8_t> differs, Span<std::uint32_t> epochs) {
    std::fill(epochs.begin(), epochs.end(), 0u);
    work_on_keys(of, parts_of(of.counts, {}), [&](Table& table, unsigned shard, Keys keys, const Part& part) {
        if (shard == 0) epochs[part.table] = table.epoch();
        table.pull_again_shard(shard, keys, step, since, noted, slots.slice(part.begin, part.end),
                               differs.slice(part.begin, part.end));
    });
}

void TableSet::encode_differing(const RecordKeys& of, Span<const std::uint32_t> slots,
                                Span<const std::uint8_t> differs,
                                const std::vector<std::uint32_t*>& positions, const std::vector<Rows>& out) {
    const std::vector<Part> parts = checked_parts(of, differs, out), all = parts_of(of.counts, {});
    work_on_keys(of, parts, [&](Table& table, unsigned shard, Keys keys, const Part& part) {
        const std::size_t first = all[static_cast<std::size_t>(&part - parts.data())].rows_begin;
        table.encode_differing_shard(shard, keys, slots.slice(part.begin, part.end),
                                     differs.slice(part.begin, part.end), static_cast<std::uint32_t>(first),
                                     positions[groups_[part.table]] + part.rows_begin, rows_of(part, out));
    });
}

void TableSet::say_marked(const RecordKeys& of, Span<const std::uint32_t> slots,
                          Span<std::uint8_t> marked) const {
    for (const Part& part : parts_of(of.counts, {})) {
        SharedTable& shared = *tables_[part.table];
        const std::lock_guard<std::mutex> lock(shared.mutex);
        for (unsigned shard = 0; shard < shared.table.num_shards(); ++shard) {
            shared.table.say_marked_shard(shard, of.keys.slice(part.begin, part.end),
                                          slots.slice(part.begin, part.end),
                                          marked.slice(part.begin, part.end));
        }
    }
}

bool TableSet::calm() const {
    return std::all_of(tables_.begin(), tables_.end(), [](const auto& shared) {
        if (!shared) return true;
        const std::lock_guard<std::mutex> lock(shared->mutex);
        return shared->table.calm();
    });
}

void TableSet::ask_disk(const RecordKeys& of) const {
    check_length("keys (counts say how many)", of.keys.size(), sum(of.counts));
    for (const Part& part : parts_of(of.counts, {})) {
        SharedTable& shared = *tables_[part.table];
        if (shared.table.config().disk_folder.empty()) continue;
        const Keys keys = of.keys.slice(part.begin, part.end);
        const std::lock_guard<std::mutex> lock(shared.mutex);
        check_table(part.table, [&] { shared.table.check_keys(keys); });
        shared.table.ask_disk(keys);
    }
}

PushCounts TableSet::push(const std::vector<PushRecord>& records, std::uint32_t step, PushPart part_of_step) {
    std::vector<std::vector<Part>> parts;
    for (const PushRecord& record : records) {
        parts.push_back(checked_parts(record.of, {}, record.gradients));
        check_length("slots", record.slots.size(), record.of.keys.size());
        check_length("epochs", record.epochs.size(), tables_.size());
        for (const Part& part : parts.back()) {
            const std::lock_guard<std::mutex> lock(tables_[part.table]->mutex);
            check_table(part.table, [&] {
                tables_[part.table]->table.check_slots(record.of.keys.slice(part.begin, part.end),
                                                       record.slots.slice(part.begin, part.end));
            });
        }
    }
    std::vector<PushBatch> batches;  // by table, then record
    std::vector<Pushed> pushed;
    std::vector<std::size_t> next(records.size());  // of each record's parts
    for (std::uint32_t t = 0; t < tables_.size(); ++t) {
        const std::size_t begin = batches.size();
        for (std::size_t i = 0; i < records.size(); ++i) {
            if (next[i] == parts[i].size() || parts[i][next[i]].table != t) continue;
            const Part& part = parts[i][next[i]++];
            const PushRecord& record = records[i];
            batches.push_back({record.of.keys.slice(part.begin, part.end),
                               record.slots.slice(part.begin, part.end), rows_of(part, record.gradients),
                               record.epochs[t]});
        }
        if (batches.size() > begin) pushed.push_back({t, begin, batches.size()});
    }
    const std::size_t most_shards = by_shards_ ? team_->size() : 1;
    std::vector<PushCounts> counts(pushed.size() * most_shards);  // of each table and shard
    work(
        pushed,
        [&](const Pushed& each) {
            std::size_t size = 0;
            for (std::size_t i = each.begin; i < each.end; ++i) size += batches[i].keys.size();
            return size;
        },
        [&](const Table& table, unsigned shard, const Pushed& each) {
            for (std::size_t i = each.begin; i < each.end; ++i) {
                table.ask_for_slots(shard, batches[i].keys, batches[i].slots);
            }
        },
        [](const Table&, unsigned, const Pushed&) {},
        [&](Table& table, unsigned shard, const Pushed& each) {
            const auto mine = Span<const PushBatch>(batches).slice(each.begin, each.end);
            const auto at = static_cast<std::size_t>(&each - pushed.data()) * most_shards + shard;
            counts[at] = table.push_shard(shard, mine, step, part_of_step);
        });
    PushCounts sum;
    for (const PushCounts& each : counts) sum += each;
    return sum;
}

std::uint64_t TableSet::evict(std::uint32_t step) {
    std::uint64_t evicted = 0;
    for (const auto& shared : tables_) {
        if (!shared) continue;
        const std::lock_guard<std::mutex> lock(shared->mutex);
        evicted += shared->table.evict(step);
    }
    return evicted;
}

void TableSet::set_lr(Span<const double> rates) {
    check_length("learning rates", rates.size(), tables_.size());
    for (std::size_t t = 0; t < rates.size(); ++t) {
        if (std::isfinite(rates[t]) && rates[t] >= 0) continue;
        throw std::invalid_argument("rates[" + std::to_string(t) + "] = " + std::to_string(rates[t]) +
                                    ", expected a finite learning rate, 0 or more");
    }
    for (std::size_t t = 0; t < rates.size(); ++t) {
        if (!tables_[t]) continue;
        const std::lock_guard<std::mutex> lock(tables_[t]->mutex);
        tables_[t]->table.set_lr(rates[t]);
    }
}

}  // namespace persia
