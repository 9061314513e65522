#include "persia/snapshot.h"

#include <map>
#include <set>
#include <stdexcept>

#include "check.h"
#include "table_model.h"

using namespace persia;

namespace {

constexpr std::uint32_t kBuckets = 16;

TableConfig config_of(const std::string& optimizer, std::uint32_t threads) {
    TableConfig config;
    config.dim = 5;
    config.optimizer = optimizer;
    config.options = {{"lr", 0.1}};
    config.init = "uniform";
    config.init_a = -1;
    config.init_b = 1;
    config.num_buckets = config.end_bucket = kBuckets;
    config.bucket_capacity = 12;
    config.threads = threads;
    return config;
}

std::vector<std::byte> bytes_of(std::uint32_t seed, std::size_t n) {
    std::mt19937 random(seed);
    std::vector<std::byte> bytes(n);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
}

// What is kept of a bucket is copies, in order, until the bucket is released.
void kept_rows_are_copies(std::size_t weight_bytes, std::size_t state_bytes) {
    Snapshot snapshot(weight_bytes, state_bytes);
    CHECK(!snapshot.active());
    snapshot.begin(2, 100);
    CHECK(snapshot.active() && !snapshot.copied(0) && !snapshot.copied(1));
    CHECK(!snapshot.settled(0) && !snapshot.settled(99) && snapshot.settled(100));
    CHECK_THROWS(std::logic_error, snapshot.begin(2, 100));
    for (std::uint32_t slot = 0; slot < 50; ++slot) {
        std::vector<std::byte> weights = bytes_of(slot, weight_bytes), state = bytes_of(~slot, state_bytes);
        snapshot.keep(slot % 2, mix(slot), 3 * slot, slot, weights.data(), state.data());
        CHECK(snapshot.settled(slot) && !snapshot.settled(slot + 1));
    }
    snapshot.settle(70);
    snapshot.settle(1000);
    CHECK(snapshot.settled(70) && !snapshot.settled(71));
    CHECK(snapshot.kept_bytes() >= 50 * (12 + weight_bytes + state_bytes));
    for (std::uint32_t bucket = 0; bucket < 2; ++bucket) {
        std::uint32_t slot = bucket;
        snapshot.for_each_kept(bucket, [&](const Snapshot::Kept& kept) {
            CHECK(kept.key == mix(slot) && kept.stamp == 3 * slot);
            const std::vector<std::byte> weights = bytes_of(slot, weight_bytes);
            const std::vector<std::byte> state = bytes_of(~slot, state_bytes);
            CHECK(std::equal(weights.begin(), weights.end(), kept.weights));
            CHECK(std::equal(state.begin(), state.end(), kept.state));
            slot += 2;
        });
        CHECK(slot == 50 + bucket);
    }
    snapshot.release(0);
    CHECK(snapshot.copied(0) && !snapshot.copied(1));
    snapshot.for_each_kept(0, [](const Snapshot::Kept&) { CHECK(false); });
    CHECK(snapshot.kept_bytes() >= 25 * (12 + weight_bytes + state_bytes));
    snapshot.release(1);
    CHECK(snapshot.kept_bytes() == 0);
    snapshot.end();
    CHECK(!snapshot.active());
    snapshot.begin(1, 10);
    CHECK(!snapshot.settled(1) && !snapshot.copied(0));
}

// One step of a job that forgets rows and makes new ones in their slots.
void train(Table& table, std::mt19937_64& random, std::uint32_t step) {
    std::vector<Pulled> pulls;
    std::vector<std::vector<float>> gradients;
    for (int i = 0; i < 2; ++i) {
        pulls.push_back(pull(table, some_keys(random, 60, 400), step));
        gradients.push_back(some_gradients(random, pulls[i].rows.size()));
    }
    if (step % 2 == 0) {
        table.push_step({batch_of(pulls[0], gradients[0]), batch_of(pulls[1], gradients[1])}, step);
    } else {
        for (int i = 0; i < 2; ++i) table.push(batch_of(pulls[i], gradients[i]), step);
    }
    table.evict(step);
}

std::vector<ExportedRows> all_rows(const Table& table) {
    std::vector<ExportedRows> rows;
    for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) rows.push_back(table.export_bucket(bucket));
    return rows;
}

// Of a moment at which nothing happens. With rows that are over their time and not swept away yet, which an
// export leaves out.
std::vector<ExportedRows> snapshot_of(Table& table) {
    std::vector<ExportedRows> rows;
    table.begin_snapshot(true);
    for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
        BucketState state;
        rows.push_back(table.snapshot_bucket(bucket, 0, state));
    }
    table.end_snapshot();
    return rows;
}

// Rows of the mark, though steps go on between the copies of its buckets, which come in any order; and the
// steps give what they would have given without it.
void a_snapshot_holds_the_rows_of_its_mark(const TableConfig& config, std::uint64_t seed) {
    Table table(config), undisturbed(config);
    std::mt19937_64 random(seed), same_random(seed), order(seed);
    std::uint32_t step = 0;
    const auto train_both = [&] {
        train(table, random, ++step);
        train(undisturbed, same_random, step);
    };
    for (int round = 0; round < 3; ++round) {
        for (int i = 0; i < 10; ++i) train_both();
        const std::vector<ExportedRows> at_mark =
            config.ttl == 0 ? all_rows(table) : snapshot_of(undisturbed);
        table.begin_snapshot(true);
        std::vector<std::uint32_t> buckets(kBuckets);
        for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) buckets[bucket] = bucket;
        std::shuffle(buckets.begin(), buckets.end(), order);
        std::size_t changed = 0, most_kept = 0;
        for (const std::uint32_t bucket : buckets) {
            if (order() % 2 == 0) train_both();
            most_kept = std::max(most_kept, table.snapshot_bytes());
            changed += !same_rows(table.export_bucket(bucket), at_mark[bucket]);
            BucketState state;
            CHECK(same_rows(table.snapshot_bucket(bucket, 0, state), at_mark[bucket]));
            CHECK_THROWS(std::logic_error, table.snapshot_bucket(bucket, 0, state));
        }
        CHECK(changed > kBuckets / 2 && most_kept > 0);  // else it shows nothing
        CHECK(table.snapshot_bytes() == 0);
        table.end_snapshot();
        const std::vector<ExportedRows> with = all_rows(table), without = all_rows(undisturbed);
        for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
            CHECK(same_rows(with[bucket], without[bucket]));
        }
    }
}

// Also a row that only a push changes, of a pull before the mark.
void a_push_after_the_mark_changes_nothing_of_it() {
    Table table(config_of("adagrad", 1));
    std::mt19937_64 random(1);
    const Pulled pulled = pull(table, some_keys(random, 50, 400), 1);
    const std::vector<float> gradients = some_gradients(random, pulled.rows.size());
    const std::vector<ExportedRows> at_mark = all_rows(table);
    for (const bool summed : {false, true}) {
        const std::vector<ExportedRows> before = all_rows(table);
        table.begin_snapshot(true);
        const PushBatch batch = batch_of(pulled, gradients);
        CHECK((summed ? table.push_step({batch}, 1) : table.push(batch, 1)).applied == pulled.keys.size());
        for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
            BucketState state;
            CHECK(same_rows(table.snapshot_bucket(bucket, 0, state), before[bucket]));
        }
        table.end_snapshot();
    }
    CHECK(!same_rows(table.export_bucket(0), at_mark[0]));
}

// A full snapshot and what changed since make the rows of the second mark.
void an_incremental_snapshot_holds_what_changed(std::uint64_t seed) {
    Table table(config_of("sgd", 3));
    std::mt19937_64 random(seed);
    std::uint32_t step = 0;
    while (step < 10) train(table, random, ++step);
    const std::uint32_t since = step;
    std::map<Key, std::vector<float>> rows;
    const auto put = [&](const ExportedRows& from) {
        for (std::size_t i = 0; i < from.keys.size(); ++i) {
            const auto row = from.rows.begin() + static_cast<std::ptrdiff_t>(i * table.dim());
            rows[from.keys[i]] = {row, row + table.dim()};
        }
    };
    table.begin_snapshot(true);
    for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
        if (bucket < 3) train(table, random, ++step);
        BucketState state;
        put(table.snapshot_bucket(bucket, 0, state));
    }
    table.end_snapshot();
    const std::vector<ExportedRows> at_mark = all_rows(table);
    std::uint64_t expected = 0, copied = 0;
    for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) expected += table.rows_since(bucket, since);
    CHECK(table.can_be_incremental());
    table.begin_snapshot(false);
    const std::vector<Key> removed = table.removed();
    CHECK(!removed.empty());
    for (const Key key : removed) rows.erase(key);
    for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
        train(table, random, ++step);
        BucketState state;
        const ExportedRows changed = table.snapshot_bucket(bucket, since, state);
        for (const std::uint32_t stamp : changed.stamps) CHECK(stamp > since);
        copied += changed.keys.size();
        put(changed);
    }
    CHECK(table.removed() == removed);
    table.end_snapshot();
    CHECK(copied == expected && copied > 0);
    std::size_t count = 0;
    for (const ExportedRows& bucket : at_mark) {
        for (std::size_t i = 0; i < bucket.keys.size(); ++i, ++count) {
            const auto row = bucket.rows.begin() + static_cast<std::ptrdiff_t>(i * table.dim());
            CHECK(rows.at(bucket.keys[i]) == std::vector<float>(row, row + table.dim()));
        }
    }
    CHECK(rows.size() == count && copied < count);
}

void what_lies_outside_a_snapshot_is_refused() {
    Table table(config_of("sgd", 2));
    std::mt19937_64 random(1);
    train(table, random, 1);
    BucketState state;
    CHECK_THROWS(std::logic_error, table.snapshot_bucket(0, 0, state));
    table.begin_snapshot(true);
    CHECK_THROWS(std::logic_error, table.begin_snapshot(true));
    CHECK_THROWS(std::logic_error, table.import_rows(imported(table.export_bucket(0))));
    CHECK_THROWS(std::invalid_argument, table.snapshot_bucket(kBuckets, 0, state));
    table.end_snapshot();
    CHECK_THROWS(std::logic_error, table.snapshot_bucket(0, 0, state));
    table.begin_snapshot(true);
    table.snapshot_bucket(0, 0, state);
    table.end_snapshot();
}

}  // namespace

int main() {
    kept_rows_are_copies(20, 0);
    kept_rows_are_copies(7, 13);
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
        a_snapshot_holds_the_rows_of_its_mark(config_of("adagrad", 1), seed);
        a_snapshot_holds_the_rows_of_its_mark(config_of("adam", 3), seed);
        TableConfig forgetful = config_of("sgd", 2);
        forgetful.ttl = 4;
        a_snapshot_holds_the_rows_of_its_mark(forgetful, seed);
        an_incremental_snapshot_holds_what_changed(seed);
    }
    a_push_after_the_mark_changes_nothing_of_it();
    what_lies_outside_a_snapshot_is_refused();
}
