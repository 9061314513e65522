#include "persia/table_set.h"

#include <atomic>
#include <limits>
#include <stdexcept>
#include <thread>
#include <utility>

#include "check.h"
#include "table_model.h"

using namespace persia;

namespace {

TableConfig config_of(std::uint32_t dim, std::uint32_t threads, std::uint64_t seed) {
    TableConfig config;
    config.dim = dim;
    config.optimizer = "adagrad";
    config.options = {{"lr", 0.1}};
    config.init = "uniform";
    config.init_a = -0.5;
    config.init_b = 0.5;
    config.seed = seed;
    config.num_buckets = 16;
    config.end_bucket = 16;
    config.bucket_capacity = 150;
    config.threads = threads;
    return config;
}

// A set of tables with these dims, and the same tables alone, with one thread.
struct Both {
    std::vector<std::shared_ptr<SharedTable>> tables;
    std::vector<std::unique_ptr<Table>> alone;
    std::vector<std::uint32_t> groups, dims;
    std::unique_ptr<TableSet> set;

    // shards: of each table. threads: of the set.
    Both(const std::vector<std::uint32_t>& dim_of_table, std::uint32_t shards, unsigned threads) {
        for (const std::uint32_t dim : dim_of_table) {
            if (std::find(dims.begin(), dims.end(), dim) == dims.end()) dims.push_back(dim);
            groups.push_back(
                static_cast<std::uint32_t>(std::find(dims.begin(), dims.end(), dim) - dims.begin()));
            tables.push_back(std::make_shared<SharedTable>(config_of(dim, shards, groups.size())));
            alone.push_back(std::make_unique<Table>(config_of(dim, 1, groups.size())));
        }
        set = std::make_unique<TableSet>(tables, groups, dims, threads);
    }
};

struct Record {
    std::vector<Key> keys;
    std::vector<std::uint32_t> counts, slots, epochs;
    std::vector<std::vector<Key>> parts;     // [T] the same keys
    std::vector<std::vector<float>> blocks;  // [G], of rows, then of gradients
    std::vector<Pulled> pulled;              // [T] from the tables alone

    RecordKeys of() const { return {keys, counts}; }
    template <class Byte>
    std::vector<RowsOn<Byte>> rows(const Both& both) {
        std::vector<RowsOn<Byte>> rows;
        for (std::size_t g = 0; g < blocks.size(); ++g) {
            rows.push_back(
                {reinterpret_cast<Byte*>(blocks[g].data()), Wire::kFp32, blocks[g].size() / both.dims[g]});
        }
        return rows;
    }
};

Record pulled(Both& both, std::mt19937_64& random, std::size_t most, std::uint32_t step) {
    Record record;
    record.blocks.resize(both.dims.size());
    std::vector<std::vector<float>> expected(both.dims.size());
    for (std::size_t t = 0; t < both.tables.size(); ++t) {
        record.parts.push_back(some_keys(random, random() % 4 == 0 ? 0 : random() % most, 3000));
        const auto& keys = record.parts.back();
        record.keys.insert(record.keys.end(), keys.begin(), keys.end());
        record.counts.push_back(static_cast<std::uint32_t>(keys.size()));
        record.pulled.push_back(pull(*both.alone[t], keys, step));
        auto& block = expected[both.groups[t]];
        block.insert(block.end(), record.pulled[t].rows.begin(), record.pulled[t].rows.end());
    }
    record.slots.resize(record.keys.size());
    record.epochs.resize(both.tables.size());
    const auto counts = both.set->row_counts(record.counts, {});
    for (std::size_t g = 0; g < both.dims.size(); ++g) record.blocks[g].resize(counts[g] * both.dims[g]);
    both.set->pull(record.of(), step, record.rows<std::byte>(both), record.slots, {}, record.epochs);
    CHECK(record.blocks == expected);
    both.set->lookup(record.of(), record.rows<std::byte>(both));
    CHECK(record.blocks == expected);
    return record;
}

PushRecord gradients(Both& both, Record& record, std::mt19937_64& random) {
    for (auto& block : record.blocks) {
        for (float& value : block) value = static_cast<float>(random() % 1000) / 500.0f - 1;
    }
    if (!record.blocks[0].empty()) record.blocks[0][0] = std::numeric_limits<float>::infinity();
    return {record.of(), record.slots, record.rows<const std::byte>(both), record.epochs};
}

bool same(const PushCounts& a, const PushCounts& b) {
    return a.applied == b.applied && a.evicted_in_flight == b.evicted_in_flight &&
           a.unadmitted == b.unadmitted && a.nonfinite == b.nonfinite;
}

// Records of several trainers, whose gradients come later, alone or as a step's sum, and evictions: with any
// number of threads what each table alone gives, while another thread takes snapshots.
void records_give_what_tables_alone_give(std::uint32_t shards, unsigned threads, std::size_t most,
                                         std::uint64_t seed) {
    Both both({3, 16, 3, 8}, shards, threads);
    std::mt19937_64 random(seed);
    std::atomic<bool> stop{false};
    std::thread other([&] {
        while (!stop) {
            for (const auto& shared : both.tables) {
                const std::lock_guard<std::mutex> lock(shared->mutex);
                shared->table.export_bucket(3);
            }
        }
    });
    for (std::uint32_t step = 1; step < 12; ++step) {
        std::vector<Record> records;
        for (std::uint64_t trainers = random() % 3 + 1; trainers > 0; --trainers) {
            records.push_back(pulled(both, random, most, step));
        }
        if (random() % 2 == 0) {
            std::uint64_t evicted = 0;
            for (const auto& table : both.alone) evicted += table->evict(step);
            CHECK(both.set->evict(step) == evicted);
        }
        std::vector<PushRecord> pushed;
        for (Record& record : records) pushed.push_back(gradients(both, record, random));
        PushCounts expected;
        std::vector<std::size_t> begins(records.size() * both.dims.size());
        for (std::size_t t = 0; t < both.tables.size(); ++t) {
            std::vector<PushBatch> batches;
            for (std::size_t i = 0; i < records.size(); ++i) {
                const Pulled& from = records[i].pulled[t];
                std::size_t& begin = begins[i * both.dims.size() + both.groups[t]];
                const auto& block = pushed[i].gradients[both.groups[t]];
                batches.push_back({from.keys, from.slots,
                                   block.slice(begin, begin + from.keys.size(), both.alone[t]->dim()),
                                   from.epoch});
                begin += from.keys.size();
            }
            expected += both.alone[t]->push_step(batches, step);
        }
        CHECK(same(both.set->push(pushed, step), expected));
    }
    stop = true;
    other.join();
    for (std::size_t t = 0; t < both.tables.size(); ++t) {
        for (std::uint32_t b = 0; b < 16; ++b) {
            const ExportedRows ours = both.tables[t]->table.export_bucket(b);
            const ExportedRows theirs = both.alone[t]->export_bucket(b);
            CHECK(ours.keys == theirs.keys && ours.rows == theirs.rows && ours.state == theirs.state);
            CHECK(ours.stamps == theirs.stamps);
        }
    }
}

void what_does_not_fit_is_refused_before_anything_changes() {
    Both both({3, 3}, 1, 2);
    std::vector<Key> keys{1, 2, 3};
    std::vector<float> rows(9);
    std::vector<std::uint32_t> counts{2, 1}, slots(3), epochs(2);
    const std::vector<Rows> out{as_fp32(rows, 3)};
    const auto pull = [&] { both.set->pull({keys, counts}, 1, out, slots, {}, epochs); };
    counts = {2, 2};
    CHECK_THROWS(std::invalid_argument, pull());
    counts = {1, 2};
    keys = {1, std::numeric_limits<Key>::max(), 0};  // of the second table out of order
    CHECK_THROWS(std::invalid_argument, pull());
    CHECK(both.tables[0]->table.num_rows() == 0);
    keys = {1, 2, 3};
    pull();
    CHECK(both.tables[0]->table.num_rows() == 1 && both.tables[1]->table.num_rows() == 2);
    slots[2] = 77;
    const std::vector<PushRecord> bad{{{keys, counts}, slots, {as_fp32(std::as_const(rows), 3)}, epochs}};
    CHECK_THROWS(std::invalid_argument, both.set->push(bad, 1));
    const std::vector<double> rates{0.1, -1};
    CHECK_THROWS(std::invalid_argument, both.set->set_lr(rates));
    CHECK_THROWS(std::invalid_argument, TableSet(both.tables, {0, 1}, {3}));
    CHECK_THROWS(std::invalid_argument, TableSet(both.tables, {0, 0}, {4}));
    CHECK_THROWS(std::invalid_argument,
                 TableSet({nullptr, nullptr}, {0, 0}, {3}).pull({keys, counts}, 1, out, slots, {}, epochs));
}

}  // namespace

int main() {
    for (const std::uint32_t shards : {1, 3}) {
        for (const unsigned threads : {1, 2, 6}) {
            records_give_what_tables_alone_give(shards, threads, 20, shards);
            records_give_what_tables_alone_give(shards, threads, 2500, 10 + shards);
        }
    }
    what_does_not_fit_is_refused_before_anything_changes();
}
