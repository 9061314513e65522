#include "persia/key_index.h"

#include <random>
#include <set>
#include <unordered_map>
#include <vector>

#include "check.h"

using namespace persia;

// Random insertions and erasures in several buckets against the standard map. Few distinct tags make many
// keys share both their lines, more than these hold, and keys that differ in their high half only.
void index_equals_unordered_map(std::uint32_t seed, std::uint64_t tag_mask, std::size_t max_rows,
                                std::uint32_t num_buckets, std::uint32_t expected_rows) {
    struct Known {
        std::uint32_t slot, stamp;
    };
    Arena arena;
    KeyIndex index(num_buckets, expected_rows, arena);
    std::vector<std::unordered_map<Key, Known>> model(num_buckets);
    std::vector<std::vector<Key>> present(num_buckets);
    std::mt19937_64 random(seed);
    for (int turn = 0; turn < 100000; ++turn) {
        const auto bucket = static_cast<std::uint32_t>(random() % num_buckets);
        auto& known = model[bucket];
        const Key key = (random() % 64) << 32 | (random() & tag_mask);
        const auto found = known.find(key);
        const KeyIndex::Entry entry = index.find(bucket, key);
        CHECK(static_cast<bool>(entry) == (found != known.end()));
        if (entry) CHECK(entry.slot() == found->second.slot && entry.stamp() == found->second.stamp);
        const bool insert = random() % (max_rows + 1) >= present[bucket].size();
        if (insert && !entry) {
            const Known row{static_cast<std::uint32_t>(turn), static_cast<std::uint32_t>(random())};
            index.reserve_one(bucket, arena);
            index.insert(bucket, key, row.slot, row.stamp);
            known[key] = row;
            present[bucket].push_back(key);
        } else if (!insert) {
            std::swap(present[bucket][random() % present[bucket].size()], present[bucket].back());
            const Key victim = present[bucket].back();
            present[bucket].pop_back();
            index.erase(bucket, index.find(bucket, victim));
            known.erase(victim);
            CHECK(!index.find(bucket, victim));
        }
        CHECK(index.size(bucket) == known.size());
    }
    for (std::uint32_t bucket = 0; bucket < num_buckets; ++bucket) {
        for (const auto& [key, row] : model[bucket]) CHECK(index.find(bucket, key).slot() == row.slot);
        std::set<Key> visited;
        index.for_each(bucket, [&](KeyIndex::Entry entry) { visited.insert(entry.key()); });
        CHECK(visited.size() == model[bucket].size());
    }
}

// Nine keys whose lines are the first two of three, which hold eight.
void keys_that_find_no_room_are_still_found() {
    Arena arena;
    KeyIndex index(1, 1, arena);
    std::vector<Key> keys;
    for (std::uint32_t high = 1; keys.size() < 9; ++high) {
        if (high * 0x9e3779b1u < 1u << 31) keys.push_back(Key{high} << 32);
    }
    const auto expect_all = [&] {
        for (std::uint32_t slot = 0; slot < keys.size(); ++slot) {
            const KeyIndex::Entry entry = index.find(0, keys[slot]);
            CHECK(entry && entry.slot() == slot && entry.stamp() == 2 * slot);
        }
        CHECK(!index.find(0, Key{1} << 31));
    };
    for (std::uint32_t slot = 0; slot < keys.size(); ++slot) {
        index.reserve_one(0, arena);
        index.insert(0, keys[slot], slot, 2 * slot);
    }
    std::set<const IndexLine*> lines;
    for (const Key key : keys) lines.insert(index.find(0, key).line);
    CHECK(lines.size() == 3);
    expect_all();
    index.erase(0, index.find(0, keys.back()));
    keys.pop_back();
    expect_all();
}

void empty_index_finds_nothing() {
    Arena arena;
    const KeyIndex index(3, 10, arena);
    for (const Key key : {Key{0}, Key{1}, ~Key{0}}) CHECK(!index.find(2, key));
}

// What an entry costs: 16 bytes at 87.5 % load, more on the way.
void index_is_compact() {
    constexpr std::uint32_t kBuckets = 64, kRows = 50000;
    Arena arena;
    KeyIndex index(kBuckets, kRows, arena);
    double worst = 0, sum = 0;
    int readings = 0;
    for (std::uint32_t row = 0; row < kRows; ++row) {
        for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
            const Key key = mix(std::uint64_t{row} * kBuckets + bucket);
            index.reserve_one(bucket, arena);
            index.insert(bucket, key, row, row);
        }
        if (row < 16000 || row % 100 != 0) continue;
        const double bytes = static_cast<double>(arena.held_bytes()) / ((row + 1.0) * kBuckets);
        worst = std::max(worst, bytes);
        sum += bytes;
        ++readings;
    }
    CHECK(worst < 28);
    CHECK(sum / readings < 25);
    CHECK(static_cast<double>(arena.held_bytes()) / (kRows * kBuckets) < 20.5);
}

int main() {
    for (std::uint32_t seed = 0; seed < 4; ++seed) {
        index_equals_unordered_map(seed, 0x3, 40, 1, 1);
        index_equals_unordered_map(seed, 0xf000000f, 200, 3, 1000);
        index_equals_unordered_map(seed, 0xffffffff, 3000, 5, 100);
    }
    keys_that_find_no_room_are_still_found();
    empty_index_finds_nothing();
    index_is_compact();
}
