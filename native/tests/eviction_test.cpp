#include "persia/eviction.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <stdexcept>

#include "check.h"

using namespace persia;

namespace {

// Rows of a few buckets and what a plain map says of them.
struct Rows {
    Rows(const std::string& policy, std::uint32_t num_buckets)
        : lfu(policy == "lfu"),
          index(num_buckets, 100, arena),
          eviction(policy, 0, num_buckets),
          model(num_buckets),
          ages(num_buckets) {}

    void insert(std::uint32_t bucket, Key key, std::uint32_t stamp) {
        index.reserve_one(bucket, arena);
        index.insert(bucket, key, next_slot++, stamp);
        model[bucket][key] = stamp;
    }
    void use(std::uint32_t bucket, Key key, std::uint32_t step) {
        const KeyIndex::Entry entry = index.find(bucket, key);
        if (!entry) {
            const std::uint32_t stamp = eviction.first(bucket, key, step);
            CHECK(stamp == (lfu ? ages[bucket] + 1 : step));
            insert(bucket, key, stamp);
        } else if (eviction.plain(step)) {  // then the caller may do it
            CHECK(!lfu);
            entry.stamp() = std::max(entry.stamp(), step);
            model[bucket][key] = std::max(model[bucket][key], step);
        } else {
            eviction.used(bucket, key, step, entry.stamp());
            std::uint32_t& stamp = model[bucket][key];
            stamp = lfu ? stamp + 1 : std::max(stamp, step);
            CHECK(entry.stamp() == stamp);
        }
    }
    void evict_one(std::uint32_t bucket) {
        auto& rows = model[bucket];
        const auto oldest = std::min_element(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
            return std::pair(a.second, a.first) < std::pair(b.second, b.first);
        });
        const KeyIndex::Entry entry = eviction.next(bucket, index);
        CHECK(entry.key() == oldest->first && entry.stamp() == oldest->second);
        if (lfu) ages[bucket] = oldest->second;
        index.erase(bucket, entry);
        rows.erase(oldest);
        CHECK(eviction.ages() == ages);
    }

    bool lfu;
    Arena arena;
    KeyIndex index;
    Eviction eviction;
    std::vector<std::map<Key, std::uint32_t>> model;
    std::vector<std::uint32_t> ages;
    std::uint32_t next_slot = 0;
};

// Whatever comes between: late pulls of earlier steps, rows that go and come back, rows of a checkpoint.
void the_least_stamp_and_key_goes(const std::string& policy, std::uint64_t num_keys, std::uint32_t capacity,
                                  std::uint32_t num_steps, std::uint64_t seed) {
    constexpr std::uint32_t kBuckets = 3;
    Rows rows(policy, kBuckets);
    std::mt19937_64 random(seed);
    std::uint64_t evicted = 0;
    for (std::uint32_t step = 5; step < num_steps; ++step) {
        for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
            for (std::uint32_t i = 0; i < capacity / 4 + 1; ++i) {
                const std::uint32_t late = random() % 4 == 0 ? static_cast<std::uint32_t>(random() % 5) : 0;
                rows.use(bucket, mix(random() % num_keys), step - late);
            }
            if (policy == "lru" && random() % 16 == 0) {
                const Key key = mix(num_keys + random());
                const auto stamp = static_cast<std::uint32_t>(random() % (step + 5));
                rows.insert(bucket, key, stamp);
                rows.eviction.restored(bucket, key, stamp, rows.model[bucket].size() == 1);
            }
            // Seldom all of it, so that the candidates of a scan are still there many steps later.
            const std::uint64_t rest = random() % 3;
            for (; rows.model[bucket].size() > capacity + rest; ++evicted) rows.evict_one(bucket);
        }
    }
    CHECK(evicted > 100 * kBuckets);
    for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
        while (!rows.model[bucket].empty()) rows.evict_one(bucket);
    }
}

// What goes of a bucket whose rows are spared once several steps have used them, against plain lists of them.
void rows_of_one_step_go_first(std::uint64_t seed) {
    constexpr std::size_t kCapacity = 300;
    Rows rows("lru", 1);
    rows.eviction.keep_used();
    std::map<Key, std::uint32_t> came;
    std::mt19937_64 random(seed);
    std::size_t once = 0, several = 0;
    const auto use = [&](Key key, std::uint32_t step) {
        const bool comes = rows.model[0].count(key) == 0;
        rows.use(0, key, step);
        if (!comes) return;
        came[key] = step;
        rows.eviction.came(0, key, step, rows.index);
    };
    for (std::uint32_t step = 1; step < 1000; ++step) {
        if (step <= 2) {
            for (Key number = 0; number < 200; ++number) use(mix(number), step);
        }
        for (int i = 0; i < 15; ++i) use(mix(random() % (100u << random() % 8)), step);
        const std::uint32_t done = step < 3 ? 0 : step - 3;  // later steps are in flight
        while (rows.model[0].size() > kCapacity) {
            const KeyIndex::Entry entry = rows.eviction.next_used(0, rows.index, done);
            if (!entry) {
                for (const auto& [key, stamp] : rows.model[0]) CHECK(stamp > done);
                break;
            }
            const Key key = entry.key();
            CHECK(entry.stamp() == rows.model[0].at(key) && entry.stamp() <= done);
            // The others of its kind that might go are as new, and if it was used again those of one step are
            // few.
            const bool again = entry.stamp() > came[key];
            std::size_t of_one_step = 0, may_go = 0;
            for (const auto& [other, stamp] : rows.model[0]) {
                const bool used_again = stamp > came[other];
                of_one_step += !used_again;
                may_go += !used_again && stamp <= done;
                CHECK(used_again != again || stamp >= entry.stamp());
            }
            if (again) CHECK(may_go == 0 || of_one_step <= rows.model[0].size() / 8);
            (again ? several : once) += 1;
            rows.index.erase(0, entry);
            rows.model[0].erase(key);
        }
    }
    CHECK(once > 1000 && several > 10);
}

// A row that can't go, as a disk is full, is the next one again.
void rows_that_stay_are_next_again() {
    Rows rows("lru", 1);
    rows.eviction.keep_used();
    for (Key key = 0; key < 40; ++key) {
        rows.use(0, mix(key), 1 + static_cast<std::uint32_t>(key));
        rows.eviction.came(0, mix(key), 1 + static_cast<std::uint32_t>(key), rows.index);
    }
    for (Key key = 0; key < 40; ++key) {  // the last few not as rows of one step
        const KeyIndex::Entry entry = rows.eviction.next_used(0, rows.index, 50);
        CHECK(entry.key() == mix(key));
        rows.eviction.stays(0, entry, 0);
        const KeyIndex::Entry again = rows.eviction.next_used(0, rows.index, 50);
        CHECK(again.key() == mix(key));
        rows.index.erase(0, again);
        CHECK(!rows.eviction.next_used(0, rows.index, static_cast<std::uint32_t>(key) + 1));
    }
}

// Ids by Zipf's law, a part of whose rows have room: of those that come, a tenth fewer and more than with
// lru.
void used_rows_stay() {
    std::size_t come[2] = {0, 0};
    for (const bool keeps : {false, true}) {
        Rows rows("lru", 1);
        if (keeps) rows.eviction.keep_used();
        std::mt19937_64 random(5);
        for (std::uint32_t step = 1; step < 600; ++step) {
            for (int i = 0; i < 100; ++i) {
                const double draw = std::uniform_real_distribution<>(0, 1)(random);
                const Key key = mix(static_cast<Key>(std::pow(20000.0, draw)));
                const bool comes = rows.model[0].count(key) == 0;
                rows.use(0, key, step);
                if (!comes) continue;
                ++come[keeps];
                rows.eviction.came(0, key, step, rows.index);
            }
            while (rows.model[0].size() > 800) {
                const KeyIndex::Entry entry = rows.eviction.next_used(0, rows.index, step);
                rows.model[0].erase(entry.key());
                rows.index.erase(0, entry);
            }
        }
    }
    CHECK(come[1] * 10 < come[0] * 9);
}

void ttl_counts_whole_steps() {
    const Eviction none("lru", 0, 1), three("lru", 3, 1);
    CHECK(!none.expired(0, 1000000) && none.ttl() == 0 && three.ttl() == 3);
    CHECK(!three.expired(10, 13) && three.expired(10, 14) && !three.expired(10, 9) && !three.expired(10, 10));
    CHECK(none.plain(1) && !three.plain(1));
}

// Rows of a checkpoint say how old the bucket was: just below the least of them.
void lfu_ages_are_restored() {
    Eviction eviction("lfu", 0, 2);
    eviction.restored(1, 10, 7, true);
    eviction.restored(1, 11, 9, false);
    CHECK(eviction.ages() == (std::vector<std::uint32_t>{0, 6}));
    eviction.restored(1, 12, 3, false);
    CHECK(eviction.ages() == (std::vector<std::uint32_t>{0, 2}));
    CHECK(eviction.first(1, 13, 100) == 3 && eviction.first(0, 14, 100) == 1);
    eviction.restore_age(0, 41);
    CHECK(eviction.first(0, 15, 100) == 42);
    std::uint32_t stamp = Eviction::kMaxStamp;
    eviction.used(0, 15, 100, stamp);
    CHECK(stamp == Eviction::kMaxStamp);
    eviction.restored(0, 16, 0, true);
    CHECK(eviction.ages()[0] == 0);
}

void wrong_options_are_refused() {
    CHECK_THROWS(std::invalid_argument, Eviction("fifo", 0, 1));
    CHECK_THROWS(std::invalid_argument, Eviction("lfu", 1, 1));
}

}  // namespace

int main() {
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
        for (const char* policy : {"lru", "lfu"}) {
            the_least_stamp_and_key_goes(policy, 60, 20, 400, seed);
            the_least_stamp_and_key_goes(policy, 100000, 100, 300, seed);
            the_least_stamp_and_key_goes(policy, 3000, 1000, 30, seed);
        }
    }
    for (std::uint64_t seed = 0; seed < 4; ++seed) rows_of_one_step_go_first(seed);
    rows_that_stay_are_next_again();
    used_rows_stay();
    ttl_counts_whole_steps();
    lfu_ages_are_restored();
    wrong_options_are_refused();
}
