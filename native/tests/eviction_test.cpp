#include "persia/eviction.h"

#include <algorithm>
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
    ttl_counts_whole_steps();
    lfu_ages_are_restored();
    wrong_options_are_refused();
}
