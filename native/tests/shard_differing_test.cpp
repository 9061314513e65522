// Rows that are looked up ahead and patched are those of a pull, eight keys at a time or one by one.
#include "check.h"
#include "persia/shard.h"
#include "persia/wide.h"
#include "table_model.h"

using namespace persia;

namespace {

constexpr std::uint32_t kDim = 4, kSteps = 30, kAhead = 3;

TableConfig config_of(std::uint32_t capacity, const std::string& eviction, std::uint32_t ttl) {
    TableConfig config;
    config.dim = kDim;
    config.optimizer = "adagrad";
    config.options = {{"lr", 0.1}};
    config.init = "normal";
    config.init_b = 0.1;
    config.num_buckets = config.end_bucket = 4;
    config.bucket_capacity = capacity;
    config.eviction = eviction;
    config.ttl = ttl;
    return config;
}

struct Ahead {
    Pulled pulled;
    std::vector<std::uint8_t> differs;
    std::uint32_t since = 0;
    bool noted = false;
};

void rows_ahead_are_those_of_a_pull(const TableConfig& config, std::size_t trainers) {
    Shard plain(config), ahead(config);
    ahead.note_uses();
    std::mt19937_64 random(7);
    std::vector<std::vector<Ahead>> of_step(kSteps + 2);
    std::uint32_t looked = 0;
    std::uint64_t sent_again = 0;
    const auto look = [&](std::uint32_t applied) {
        for (; looked < std::min(applied + kAhead, kSteps + 1); ++looked) {
            for (std::size_t t = 0; t < trainers; ++t) {
                Ahead one;
                one.pulled.keys = some_keys(random, 200 + random() % 500, 3000);
                const std::size_t n = one.pulled.keys.size();
                one.pulled.rows.resize(n * kDim);
                one.pulled.slots.resize(n);
                one.differs.resize(n);
                one.since = applied;
                ahead.lookup(one.pulled.keys, as_fp32(one.pulled.rows, n), one.pulled.slots);
                of_step[looked + 1].push_back(std::move(one));
            }
        }
    };
    const auto mark = [&](std::uint32_t step) {
        for (Ahead& one : of_step[step]) {
            one.noted = trainers == 1 && ahead.calm();
            ahead.mark_differing(one.pulled.keys, one.since, one.noted ? step : 0, one.pulled.slots,
                                 one.differs);
        }
    };
    look(0);
    mark(1);
    for (std::uint32_t step = 1; step <= kSteps; ++step) {
        std::vector<Pulled> expected;
        for (Ahead& one : of_step[step]) {
            const std::size_t n = one.pulled.keys.size();
            expected.push_back(
                {one.pulled.keys, std::vector<float>(n * kDim), std::vector<std::uint32_t>(n)});
            Pulled& here = expected.back();
            here.epoch = plain.epoch();
            plain.pull(here.keys, step, as_fp32(here.rows, n), here.slots, {});
            one.pulled.epoch = ahead.epoch();
            ahead.pull_again(one.pulled.keys, step, one.since, one.noted, one.pulled.slots, one.differs);
            const auto count =
                static_cast<std::size_t>(std::count(one.differs.begin(), one.differs.end(), std::uint8_t{1}));
            std::vector<std::uint32_t> positions(count);
            std::vector<float> rows(count * kDim);
            ahead.encode_differing(one.pulled.slots, one.differs, 0, positions.data(), as_fp32(rows, count));
            for (std::size_t k = 0; k < count; ++k) {
                std::copy_n(&rows[k * kDim], kDim, &one.pulled.rows[positions[k] * kDim]);
            }
            CHECK(same_bits(one.pulled.rows, here.rows));
            sent_again += count;
            CHECK(count < n);
        }
        for (std::uint32_t bucket = 0; bucket < 4; ++bucket) {
            CHECK(same_rows(plain.export_bucket(bucket), ahead.export_bucket(bucket)));
        }
        look(step - 1);
        mark(step + 1);
        std::vector<std::vector<float>> gradients;
        std::vector<PushBatch> batches, others;
        for (std::size_t t = 0; t < trainers; ++t) {
            gradients.push_back(some_gradients(random, expected[t].rows.size()));
        }
        for (std::size_t t = 0; t < trainers; ++t) {
            batches.push_back(batch_of(expected[t], gradients[t]));
            others.push_back(batch_of(of_step[step][t].pulled, gradients[t]));
        }
        CHECK(same_counts(plain.push_step(batches, step), ahead.push_step(others, step)));
        CHECK(plain.evict(step) == ahead.evict(step));
    }
    CHECK(sent_again > 0);
    CHECK((plain.counts().evicted > 0) == (config.bucket_capacity < 1000 || config.ttl != 0));
}

void all_tests() {
    for (const std::size_t trainers : {1, 3}) {
        rows_ahead_are_those_of_a_pull(config_of(5000, "lru", 0), trainers);
        rows_ahead_are_those_of_a_pull(config_of(500, "lru", 0), trainers);
        rows_ahead_are_those_of_a_pull(config_of(5000, "lru", 5), trainers);
        rows_ahead_are_those_of_a_pull(config_of(500, "lfu", 0), trainers);
    }
}

}  // namespace

int main() {
    all_tests();
    if (!use_wide) return 0;
    use_wide = false;  // as on processors without AVX-512
    all_tests();
}
