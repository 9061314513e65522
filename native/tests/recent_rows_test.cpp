#include "persia/recent_rows.h"

#include <random>
#include <set>
#include <stdexcept>

#include "check.h"

using namespace persia;

namespace {

// A trainer's rings, which hold names of rows instead of rows.
struct Row {
    std::size_t table = SIZE_MAX;
    std::uint64_t key = 0;
    std::uint32_t step = 0;  // in which it travelled
};

struct Batch {
    std::vector<std::uint64_t> keys;
    std::vector<std::uint32_t> offsets{0};
};

Batch random_batch(std::mt19937_64& random, std::size_t num_tables, std::size_t most, std::uint64_t range) {
    Batch batch;
    for (std::size_t t = 0; t < num_tables; ++t) {
        std::set<std::uint64_t> keys;
        for (std::size_t n = random() % (most + 1); n > 0; --n) {
            keys.insert(random() % 3 == 0 ? random() % 20 : random() % range);  // some of them often
        }
        batch.keys.insert(batch.keys.end(), keys.begin(), keys.end());
        batch.offsets.push_back(static_cast<std::uint32_t>(batch.keys.size()));
    }
    return batch;
}

// A trainer that does what it is told finds each row where it is said to be, young enough, and writes over
// none that a batch may still use.
void rows_are_where_they_are_said_to_be(const std::vector<std::uint32_t>& groups, std::uint32_t reuse_steps,
                                        std::size_t most, std::uint64_t range, std::uint64_t seed) {
    RecentRows recent(groups, reuse_steps);
    const std::size_t num_groups = groups.back() + 1;
    CHECK(recent.num_tables() == groups.size() && recent.num_groups() == num_groups);
    std::vector<std::vector<Row>> held(num_groups);
    std::mt19937_64 random(seed);
    std::uint64_t reused = 0, all = 0;
    std::uint32_t step = 0;
    for (int turn = 0; turn < 300; ++turn) {
        step += random() % 10 == 0 ? 1 + static_cast<std::uint32_t>(random() % 40) : 1;
        const Batch batch = random_batch(random, groups.size(), turn % 50 == 49 ? 4 * most : most, range);
        std::vector<std::uint8_t> wanted(batch.keys.size(), 9);
        std::vector<std::uint32_t> places(batch.keys.size());
        std::vector<RecentRows::Ring> rings(num_groups);
        const std::uint32_t ages = recent.find(batch.keys, batch.offsets, step, wanted, places, rings);
        std::vector<std::int64_t> next(num_groups);
        for (std::size_t g = 0; g < num_groups; ++g) {
            next[g] = rings[g].begin;
            if (held[g].size() != static_cast<std::size_t>(rings[g].rows)) {
                held[g].assign(static_cast<std::size_t>(rings[g].rows), Row{});
            }
        }
        std::uint32_t found_ages = 0;
        // First the rows that travel, then all are looked up: so one that was written over is missed.
        for (std::size_t t = 0; t < groups.size(); ++t) {
            for (std::size_t i = batch.offsets[t]; i < batch.offsets[t + 1]; ++i) {
                CHECK(wanted[i] <= 1);
                if (wanted[i] == 0) continue;
                CHECK(next[groups[t]] == places[i]);
                held[groups[t]].at(static_cast<std::size_t>(next[groups[t]]++)) = {t, batch.keys[i], step};
            }
        }
        for (std::size_t t = 0; t < groups.size(); ++t) {
            for (std::size_t i = batch.offsets[t]; i < batch.offsets[t + 1]; ++i) {
                const Row& row = held[groups[t]].at(places[i]);
                CHECK(row.table == t && row.key == batch.keys[i]);
                CHECK(step - row.step <= reuse_steps && (wanted[i] == 1) == (row.step == step));
                if (wanted[i] == 0) found_ages |= 1u << (step - row.step);
                reused += wanted[i] == 0;
                ++all;
            }
        }
        CHECK(ages == found_ages);
    }
    CHECK(reused > all / 20);
}

// The same batch again and again travels every (reuse_steps + 1)th step.
void held_rows_do_not_travel(std::uint32_t reuse_steps) {
    RecentRows recent({0}, reuse_steps);
    std::vector<std::uint64_t> keys;
    for (std::uint64_t key = 0; key < 100; ++key) keys.push_back(key);
    const std::uint32_t offsets[] = {0, 100};
    for (std::uint32_t step = 1; step < 100; ++step) {
        std::vector<std::uint8_t> wanted(100);
        std::vector<std::uint32_t> places(100);
        RecentRows::Ring ring;
        const std::uint32_t ages = recent.find(keys, {offsets, 2}, step, wanted, places, {&ring, 1});
        const std::uint32_t age = (step - 1) % (reuse_steps + 1);
        CHECK(ages == (age == 0 ? 0 : 1u << age));
        CHECK(wanted == std::vector<std::uint8_t>(100, age == 0));
    }
}

void wrong_arguments_are_refused() {
    CHECK_THROWS(std::invalid_argument, RecentRows({0}, 0));
    CHECK_THROWS(std::invalid_argument, RecentRows({0}, RecentRows::kMostSteps + 1));
    CHECK_THROWS(std::invalid_argument, RecentRows({1}, 1));
    CHECK_THROWS(std::invalid_argument, RecentRows({0, 2}, 1));
    CHECK_THROWS(std::invalid_argument, RecentRows({0, 1, 0}, 1));
    RecentRows recent({0}, 3);
    const std::uint32_t offsets[] = {0, 0};
    RecentRows::Ring ring;
    recent.find({}, {offsets, 2}, 5, {}, {}, {&ring, 1});
    CHECK_THROWS(std::invalid_argument, recent.find({}, {offsets, 2}, 5, {}, {}, {&ring, 1}));
}

}  // namespace

int main() {
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
        rows_are_where_they_are_said_to_be({0}, 1, 50, 100, seed);
        rows_are_where_they_are_said_to_be({0, 0, 1}, 4, 100, 300, seed);
        rows_are_where_they_are_said_to_be({0, 1, 1, 2}, RecentRows::kMostSteps, 30, 1000, seed);
        rows_are_where_they_are_said_to_be({0, 0}, 3, 100, 1u << 20, seed);
    }
    for (const std::uint32_t reuse_steps : {1u, 2u, 7u, RecentRows::kMostSteps}) {
        held_rows_do_not_travel(reuse_steps);
    }
    wrong_arguments_are_refused();
}
