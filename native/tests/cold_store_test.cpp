#include "persia/cold_store.h"

#include <map>
#include <random>
#include <set>

#include "check.h"
#include "persia/cold_index.h"

using namespace persia;

namespace {

// Against a plain set of (key, place); few different hashes, so that runs are long and wrap around.
void test_index() {
    std::mt19937_64 random(1);
    ColdIndex index;
    std::set<std::pair<Key, ColdIndex::Place>> model;
    for (int i = 0; i < 20000; ++i) {
        const Key key = unmix((random() % 300) << 36 | (random() % 2 != 0 ? 0xfffffffull << 36 : 0));
        const ColdIndex::Place place = random() % 1000000;
        if (random() % 100 < (i < 8000 ? 60 : 40) || model.empty()) {
            if (model.count({key, place}) != 0) continue;
            index.insert(key, place);
            model.insert({key, place});
        } else {
            auto at = model.lower_bound({key, place});
            if (at == model.end()) at = model.begin();
            const auto [old, from] = *at;
            model.erase(at);
            if (random() % 3 == 0 && model.count({old, place}) == 0) {
                index.move(old, from, place);
                model.insert({old, place});
            } else {
                index.erase(old, from);
            }
        }
        CHECK(index.size() == model.size());
        if (i % 500 != 0) continue;
        for (const auto& [each, where] : model) {
            CHECK(index.contains(each, where));
            std::size_t found = 0;
            index.for_each_match(each, [&](ColdIndex::Place at) { found += at == where; });
            CHECK(found == 1);
        }
    }
    CHECK(!index.contains(unmix(1), 5));
}

// Against a plain map, with rows that come and go in a few buckets.
void test_store() {
    constexpr std::size_t kWeights = 10, kState = 6;
    std::mt19937_64 random(2);
    ColdStore store("/tmp", 1 << 22, 3, 64, kWeights, kState);
    struct Value {
        std::uint32_t stamp;
        std::vector<std::byte> bytes;
    };
    std::map<Key, Value> model;
    const auto bucket = [](Key key) { return static_cast<std::uint32_t>(key % 3); };
    for (std::uint32_t step = 0; step < 3000; ++step) {
        for (int i = 0; i < 8; ++i) {
            const Key key = mix(random() % 2000);
            if (model.count(key) != 0) continue;
            Value value{step, std::vector<std::byte>(kWeights + kState)};
            for (std::byte& byte : value.bytes) byte = static_cast<std::byte>(random());
            store.append(bucket(key), key, step, value.bytes.data(), value.bytes.data() + kWeights);
            model.emplace(key, value);
        }
        std::vector<ColdStore::Wanted> wanted;
        std::size_t here = 0;
        for (std::uint32_t i = 0; i < 12; ++i) {
            const Key key = mix(random() % 2000);
            wanted.push_back({bucket(key), i, key});
            here += model.count(key);
        }
        const auto found = store.find(wanted);
        CHECK(found.size() == here);
        std::set<Key> gone;
        for (const auto& [what, row] : found) {
            const Value& value = model.at(what.key);
            CHECK(row.stamp == value.stamp);
            CHECK(std::equal(row.weights, row.weights + kWeights, value.bytes.begin()));
            CHECK(std::equal(row.state, row.state + kState, value.bytes.begin() + kWeights));
            if (what.at % 2 != 0 || !gone.insert(what.key).second) continue;
            store.erase(what.bucket, what.key, row.place);
        }
        for (const Key key : gone) model.erase(key);
        store.tidy();
        CHECK(store.size() == model.size());
    }
    std::size_t seen = 0;
    for (std::uint32_t home = 0; home < 3; ++home) {
        store.for_each(home, 0, UINT32_MAX, [&](const ColdStore::Row& row) {
            CHECK(bucket(row.key) == home && model.at(row.key).stamp == row.stamp);
            ++seen;
            return row.stamp % 2 == 0;  // the others go
        });
    }
    CHECK(seen == model.size());
    std::size_t left = 0;
    for (const auto& each : model) left += each.second.stamp % 2 == 0;
    CHECK(store.size() == left);
}

// A store that is full has closed its gaps: it isn't when most extents are half empty, few of them sparse.
void test_full() {
    constexpr std::size_t kWeights = 100;
    constexpr std::uint64_t kCapacity = 1 << 19;
    constexpr std::uint32_t kBuckets = 2;
    std::mt19937_64 random(3);
    ColdStore store("/tmp", kCapacity, kBuckets, 64, kWeights, 0);
    const std::vector<std::byte> weights(kWeights);
    std::set<Key> model;
    const auto bucket = [](Key key) { return static_cast<std::uint32_t>(key % kBuckets); };
    const std::size_t record = store.record_bytes(), extent = ColdStore::extent_bytes(record, 64);
    const std::size_t least = kCapacity / extent * (extent / record) * 7 / 10;
    for (int turn = 0; turn < 60; ++turn) {
        bool full = false;
        while (!full) {
            const Key key = random();
            try {
                store.append(bucket(key), key, 1, weights.data(), nullptr);
                model.insert(key);
            } catch (const DiskFull&) {
                full = true;
            }
        }
        CHECK(store.size() == model.size() && store.size() >= least);
        CHECK(store.file_bytes() <= kCapacity);
        for (auto each = model.begin(); each != model.end();) {
            const bool goes = random() % 100 < 55;
            if (goes) {
                const ColdStore::Wanted wanted{bucket(*each), 0, *each};
                const auto& found = store.find({&wanted, 1});
                CHECK(found.size() == 1);
                store.erase(wanted.bucket, *each, found[0].row.place);
            }
            each = goes ? model.erase(each) : std::next(each);
        }
        if (turn % 2 == 0) store.tidy();
    }
}

}  // namespace

int main() {
    test_index();
    test_store();
    test_full();
    return 0;
}
