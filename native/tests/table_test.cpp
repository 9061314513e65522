#include "persia/table.h"

#include <deque>
#include <limits>
#include <set>
#include <stdexcept>

#include "check.h"
#include "persia/wide.h"
#include "table_model.h"

using namespace persia;

namespace {

TableConfig config_of(const std::string& optimizer, std::uint32_t dim) {
    TableConfig config;
    config.dim = dim;
    config.optimizer = optimizer;
    config.options = {{"lr", 0.1}};
    config.init = "uniform";
    config.init_a = -0.5;
    config.init_b = 0.5;
    config.seed = 7;
    config.num_buckets = 8;
    config.end_bucket = 8;
    config.bucket_capacity = 20;
    return config;
}

struct Flight {
    Pulled pulled;
    std::vector<float> gradients;
};

PushCounts push_all(Table& table, const std::vector<Flight>& flights, std::uint32_t step) {
    std::vector<PushBatch> batches;
    for (const Flight& each : flights) batches.push_back(batch_of(each.pulled, each.gradients));
    return table.push_step(batches, step);
}

PushCounts push_all(ModelTable& model, const std::vector<Flight>& flights) {
    std::vector<const Pulled*> pulls;
    std::vector<const std::vector<float>*> gradients;
    for (const Flight& each : flights) pulls.push_back(&each.pulled), gradients.push_back(&each.gradients);
    return model.push_step(pulls, gradients);
}

// Pulls, pushes that come some steps later, alone or as a step's sum, evictions in between, look-ups: rows,
// counts and what is exported are the model's, bit for bit. scale: of calls and table.
void any_history_gives_what_the_model_gives(TableConfig config, std::uint64_t seed, std::uint32_t scale = 1) {
    const std::uint64_t num_ids = 500 * scale;
    config.bucket_capacity *= scale;
    Table table(config);
    ModelTable model(config);
    std::mt19937_64 random(seed);
    std::deque<std::vector<Flight>> in_flight;
    PushCounts sum;
    std::uint64_t evicted = 0;
    for (std::uint32_t step = 1; step < 60; ++step) {
        std::vector<Flight>& flights = in_flight.emplace_back();
        for (std::uint64_t worker = random() % 3 + 1; worker > 0; --worker) {
            const std::vector<Key> keys = some_keys(random, random() % (80 * scale), num_ids);
            Flight& flight = flights.emplace_back();
            flight.pulled = pull(table, keys, step);
            CHECK(same_bits(flight.pulled.rows, model.pull(keys, step)));
            CHECK(std::count(flight.pulled.slots.begin(), flight.pulled.slots.end(), kNoSlot) == 0);
            flight.gradients = some_gradients(random, keys.size() * config.dim);
            for (float& gradient : flight.gradients) {
                if (random() % 2000 == 0) gradient = std::numeric_limits<float>::infinity();
            }
        }
        for (const std::uint64_t late = random() % 3; in_flight.size() > late; in_flight.pop_front()) {
            if (random() % 2 == 0) {
                const PushCounts counts = push_all(table, in_flight.front(), step);
                CHECK(same_counts(counts, push_all(model, in_flight.front())));
                sum += counts;
                continue;
            }
            for (const Flight& each : in_flight.front()) {
                const PushCounts counts = table.push(batch_of(each.pulled, each.gradients), step);
                CHECK(same_counts(counts, push_all(model, {each})));
                sum += counts;
            }
        }
        const std::uint64_t gone = table.evict(step);
        CHECK(gone == model.evict());
        evicted += gone;
        const std::vector<Key> asked = some_keys(random, 100 * scale, 2 * num_ids);
        CHECK(same_bits(lookup(table, asked), model.lookup(asked)));
        CHECK(table.num_rows() == model.num_rows() && table.counts().evicted == evicted);
    }
    for (std::uint32_t bucket = 0; bucket < config.num_buckets; ++bucket) {
        CHECK(same_rows(table.export_bucket(bucket), model.export_bucket(bucket)));
    }
    CHECK(sum.applied > 1000 && sum.evicted_in_flight > 10 && sum.nonfinite > 0 && sum.unadmitted == 0);
}

// Not only as the model has it.
void a_push_is_one_step_of_sgd() {
    Table table(config_of("sgd", 3));
    std::vector<Key> keys{mix(1), mix(2)};
    std::sort(keys.begin(), keys.end());
    const Pulled pulled = pull(table, keys, 1);
    for (const float value : pulled.rows) CHECK(value >= -0.5f && value < 0.5f);
    CHECK(std::set<float>(pulled.rows.begin(), pulled.rows.end()).size() == 6);
    const std::vector<float> gradients{1, -2, 0, 0.5, 3, -1};
    CHECK(table.push(batch_of(pulled, gradients), 1).applied == 2);
    table.set_lr(0);
    CHECK(table.push(batch_of(pulled, gradients), 1).applied == 2);
    const std::vector<float> after = lookup(table, keys);
    for (std::size_t d = 0; d < 6; ++d) CHECK(after[d] == pulled.rows[d] - 0.1f * gradients[d]);
}

// Many times more rows than memory is first taken for; each keeps its update.
void rows_survive_growth(std::uint32_t dim, std::uint64_t num_ids) {
    TableConfig config = config_of("sgd", dim);
    config.bucket_capacity = 1u << 20;
    Table table(config);
    std::mt19937_64 random(dim);
    std::vector<Flight> flights;
    for (std::uint64_t begin = 0; begin < num_ids; begin += 1000) {
        std::vector<Key> keys;
        for (std::uint64_t id = begin; id < begin + 1000; ++id) keys.push_back(mix(id));
        std::sort(keys.begin(), keys.end());
        Flight& flight = flights.emplace_back();
        flight.pulled = pull(table, keys, 1);
        flight.gradients = some_gradients(random, keys.size() * dim);
        table.push(batch_of(flight.pulled, flight.gradients), 1);
    }
    CHECK(table.num_rows() == num_ids && table.evict(1) == 0);
    for (const Flight& flight : flights) {
        std::vector<float> expected = flight.pulled.rows;
        for (std::size_t i = 0; i < expected.size(); ++i) expected[i] -= 0.1f * flight.gradients[i];
        CHECK(same_bits(lookup(table, flight.pulled.keys), expected));
    }
}

// However many threads there are; slots may differ.
void threads_change_nothing(const std::string& optimizer, const std::string& storage) {
    TableConfig config = config_of(optimizer, 16);
    config.storage = config.state_storage = storage;
    config.bucket_capacity = 700;
    std::vector<std::unique_ptr<Table>> tables;
    for (const std::uint32_t threads : {1u, 2u, 5u}) {
        config.threads = threads;
        tables.push_back(std::make_unique<Table>(config));
    }
    std::mt19937_64 random(3);
    std::uint64_t evicted = 0;
    for (std::uint32_t step = 1; step < 8; ++step) {
        const std::vector<Key> keys[2] = {some_keys(random, 4000, 8000), some_keys(random, 3000, 8000)};
        std::vector<float> gradients[2];
        for (int i = 0; i < 2; ++i) gradients[i] = some_gradients(random, keys[i].size() * config.dim);
        std::vector<float> rows[2];
        for (const auto& table : tables) {
            std::vector<Flight> flights;
            for (int i = 0; i < 2; ++i) {
                flights.push_back({pull(*table, keys[i], step), gradients[i]});
                if (table == tables[0]) rows[i] = flights[i].pulled.rows;
                CHECK(same_bits(flights[i].pulled.rows, rows[i]));
            }
            const PushCounts counts = step % 2 == 0
                                          ? push_all(*table, flights, step)
                                          : table->push(batch_of(flights[0].pulled, gradients[0]), step);
            CHECK(counts.applied == (step % 2 == 0 ? keys[0].size() + keys[1].size() : keys[0].size()));
            evicted += table->evict(step);
        }
    }
    for (std::uint32_t bucket = 0; bucket < config.num_buckets; ++bucket) {
        const ExportedRows expected = tables[0]->export_bucket(bucket);
        CHECK(expected.keys.size() == config.bucket_capacity);
        for (const auto& table : tables) CHECK(same_rows(table->export_bucket(bucket), expected));
    }
    CHECK(evicted > 100);
}

// However many keys come, a bucket has no more rows after a step, and the table no more memory.
void capacity_is_kept() {
    TableConfig config = config_of("adagrad", 4);
    config.bucket_capacity = 300;
    Table table(config);
    std::mt19937_64 random(4);
    std::uint64_t memory = 0;
    for (std::uint32_t step = 1; step <= 80; ++step) {
        pull(table, some_keys(random, 1000, UINT64_MAX), step);
        table.evict(step);
        for (std::uint32_t bucket = 0; bucket < config.num_buckets; ++bucket) {
            CHECK(table.export_bucket(bucket).keys.size() <= config.bucket_capacity);
        }
        if (step == 30) memory = table.memory_bytes();
    }
    CHECK(table.num_rows() == config.bucket_capacity * config.num_buckets);
    CHECK(table.memory_bytes() < memory + memory / 10);
}

// Rows that aren't wanted are made and noted all the same, and only left out of what is sent.
void only_wanted_rows_are_sent(std::uint32_t threads) {
    TableConfig config = config_of("sgd", 4);
    config.threads = threads;
    config.bucket_capacity = 1000;
    Table table(config), other(config);
    std::mt19937_64 random(5);
    for (const std::size_t n : {100, 4000}) {
        const std::vector<Key> keys = some_keys(random, n, 10000);
        std::vector<std::uint8_t> wanted(keys.size());
        for (std::uint8_t& each : wanted) each = random() % 3 == 0;
        const Pulled all = pull(other, keys, 1);
        std::vector<float> expected, rows;
        for (std::size_t i = 0; i < keys.size(); ++i) {
            if (wanted[i] == 0) continue;
            const auto row = all.rows.begin() + static_cast<std::ptrdiff_t>(4 * i);
            expected.insert(expected.end(), row, row + 4);
        }
        rows.resize(expected.size());
        std::vector<std::uint32_t> slots(keys.size());
        table.pull(keys, 1, as_fp32(rows, rows.size() / config.dim), slots, wanted);
        CHECK(same_bits(rows, expected) && slots == all.slots);
    }
    for (std::uint32_t bucket = 0; bucket < config.num_buckets; ++bucket) {
        CHECK(same_rows(table.export_bucket(bucket), other.export_bucket(bucket)));
    }
}

// And then nothing has changed.
void wrong_calls_are_refused() {
    TableConfig config = config_of("adagrad", 4);
    config.first_bucket = 2;
    config.end_bucket = 6;
    config.threads = 2;
    Table table(config);
    const BucketOf bucket_of(8);
    std::vector<Key> keys;
    for (std::uint64_t id = 0; keys.size() < 50; ++id) {
        if (bucket_of(mix(id)) >= 2 && bucket_of(mix(id)) < 6) keys.push_back(mix(id));
    }
    std::sort(keys.begin(), keys.end());
    const auto refuses = [&](const std::vector<Key>& wrong) {
        CHECK_THROWS(std::invalid_argument, pull(table, wrong, 1));
        CHECK_THROWS(std::invalid_argument, lookup(table, wrong));
        CHECK(table.num_rows() == 0);
    };
    refuses({keys.rbegin(), keys.rend()});
    refuses({Key{1} << 60});  // bucket 0
    refuses({Key{6} << 61});  // bucket 6
    refuses({keys[0], ~Key{0}});
    Pulled pulled = pull(table, keys, 1);
    const std::vector<float> gradients(keys.size() * 4, 1.0f);
    pulled.slots[49] = 50;
    CHECK_THROWS(std::invalid_argument, table.push(batch_of(pulled, gradients), 1));
    CHECK_THROWS(std::invalid_argument, table.push_step({batch_of(pulled, gradients)}, 1));
    pulled.slots.pop_back();
    CHECK_THROWS(std::invalid_argument, table.push(batch_of(pulled, gradients), 1));
    CHECK_THROWS(std::invalid_argument, table.pull(keys, 1, as_fp32(pulled.rows, 50), pulled.slots));
    pulled.slots.push_back(0);
    CHECK_THROWS(std::invalid_argument,
                 table.push({pulled.keys, pulled.slots, as_fp32(gradients, 49), pulled.epoch}, 1));
    CHECK_THROWS(std::invalid_argument, table.lookup(keys, as_fp32(pulled.rows, 49)));
    CHECK_THROWS(std::invalid_argument, table.pull(keys, 1, as_fp32(pulled.rows, 49), pulled.slots));
    const std::vector<std::uint8_t> few(49, 1), none(50, 0);
    CHECK_THROWS(std::invalid_argument, table.pull(keys, 1, as_fp32(pulled.rows, 49), pulled.slots, few));
    CHECK_THROWS(std::invalid_argument, table.pull(keys, 1, as_fp32(pulled.rows, 50), pulled.slots, none));
    CHECK(same_bits(lookup(table, keys), pulled.rows) && table.num_rows() == 50);
    CHECK_THROWS(std::invalid_argument, table.export_bucket(1));
    CHECK_THROWS(std::invalid_argument, table.export_bucket(6));
    config.num_buckets = 6;
    CHECK_THROWS(std::invalid_argument, Table{config});
}

void all_tests() {
    for (const char* optimizer : {"sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "adamw", "ftrl"}) {
        any_history_gives_what_the_model_gives(config_of(optimizer, 8), 1);
        any_history_gives_what_the_model_gives(config_of(optimizer, 5), 2);
    }
    TableConfig threaded = config_of("adagrad", 16);
    threaded.threads = 3;
    any_history_gives_what_the_model_gives(threaded, 3);
    any_history_gives_what_the_model_gives(config_of("adagrad", 16), 4, 8);
    any_history_gives_what_the_model_gives(config_of("sgd", 24), 5, 40);
    a_push_is_one_step_of_sgd();
    rows_survive_growth(1, 60000);
    rows_survive_growth(64, 10000);
    threads_change_nothing("adagrad", "fp32");
    threads_change_nothing("adagrad", "bf16");
    threads_change_nothing("adam", "fp16");
    capacity_is_kept();
    only_wanted_rows_are_sent(1);
    only_wanted_rows_are_sent(4);
    wrong_calls_are_refused();
}

}  // namespace

int main() {
    all_tests();
    if (!use_wide) return 0;
    use_wide = false;  // as on processors without AVX-512
    all_tests();
}
