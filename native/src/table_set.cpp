#include "persia/table_set.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace persia {
namespace {

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
                   std::vector<std::uint32_t> dims)
    : tables_(std::move(tables)), groups_(std::move(groups)), dims_(std::move(dims)) {
    check_length("dim groups of tables", groups_.size(), tables_.size());
    for (std::uint32_t t = 0; t < tables_.size(); ++t) {
        if (groups_[t] >= dims_.size()) {
            throw std::invalid_argument("groups[" + std::to_string(t) + "] = " + std::to_string(groups_[t]) +
                                        ", but there are " + std::to_string(dims_.size()) + " dim groups");
        }
        if (!tables_[t]) continue;
        check_length("dim of table " + std::to_string(t), tables_[t]->table.dim(), dims_[groups_[t]]);
    }
}

template <class Work>
auto TableSet::locked(std::uint32_t table, Work&& work) const {
    SharedTable& shared = *tables_[table];
    const std::lock_guard<std::mutex> lock(shared.mutex);
    return work(shared.table);
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
    for (const Part& part : parts) {
        epochs[part.table] = locked(part.table, [&](Table& table) {
            return table.pull_checked(of.keys.slice(part.begin, part.end), step, rows_of(part, out),
                                      slots.slice(part.begin, part.end),
                                      wanted.empty() ? wanted : wanted.slice(part.begin, part.end));
        });
    }
}

void TableSet::lookup(const RecordKeys& of, const std::vector<Rows>& out) const {
    for (const Part& part : checked_parts(of, {}, out)) {
        locked(part.table, [&](const Table& table) {
            table.lookup_checked(of.keys.slice(part.begin, part.end), rows_of(part, out));
        });
    }
}

PushBatch TableSet::batch_of(const Part& part, const PushRecord& record) const {
    return {record.of.keys.slice(part.begin, part.end), record.slots.slice(part.begin, part.end),
            rows_of(part, record.gradients), record.epochs[part.table]};
}

PushCounts TableSet::push(const std::vector<PushRecord>& records, std::uint32_t step) {
    std::vector<std::vector<Part>> parts;
    for (const PushRecord& record : records) {
        parts.push_back(checked_parts(record.of, {}, record.gradients));
        check_length("slots", record.slots.size(), record.of.keys.size());
        check_length("epochs", record.epochs.size(), tables_.size());
        for (const Part& part : parts.back()) {
            check_table(part.table, [&] {
                locked(part.table, [&](const Table& table) {
                    table.check_slots(record.of.keys.slice(part.begin, part.end),
                                      record.slots.slice(part.begin, part.end));
                });
            });
        }
    }
    PushCounts counts;
    if (records.size() == 1) {
        for (const Part& part : parts[0]) {
            const PushBatch batch = batch_of(part, records[0]);
            counts += locked(part.table, [&](Table& table) { return table.push_checked(batch, step); });
        }
        return counts;
    }
    std::vector<const Part*> at;  // of each record, the part that comes next
    for (const auto& each : parts) at.push_back(each.data());
    std::vector<PushBatch> batches;
    for (std::uint32_t t = 0; t < tables_.size(); ++t) {
        batches.clear();
        for (std::size_t i = 0; i < records.size(); ++i) {
            if (at[i] == parts[i].data() + parts[i].size() || at[i]->table != t) continue;
            batches.push_back(batch_of(*at[i]++, records[i]));
        }
        if (batches.empty()) continue;
        counts += locked(t, [&](Table& table) { return table.push_step_checked(batches, step); });
    }
    return counts;
}

std::uint64_t TableSet::evict(std::uint32_t step) {
    std::uint64_t evicted = 0;
    for (std::uint32_t t = 0; t < tables_.size(); ++t) {
        if (tables_[t]) evicted += locked(t, [&](Table& table) { return table.evict(step); });
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
    for (std::uint32_t t = 0; t < tables_.size(); ++t) {
        if (tables_[t]) locked(t, [&](Table& table) { table.set_lr(rates[t]); });
    }
}

}  // namespace persia
