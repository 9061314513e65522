#include <random>
#include <set>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "persia/bucket_index.h"
#include "persia/bucket_rows.h"

using namespace persia;

// Random insertions and erasures against the standard map. Few distinct tags make long runs, wrap-arounds and
// keys that only the confirmation can tell apart.
void index_equals_unordered_map(std::uint32_t seed, std::uint64_t tag_mask, std::size_t max_rows) {
    Arena arena;
    BucketIndex index;
    std::unordered_map<Key, std::uint32_t> model;
    std::vector<Key> key_of;  // by slot
    std::vector<std::uint32_t> free;
    std::vector<Key> present;
    std::mt19937_64 random(seed);
    const auto find = [&](Key key) {
        return index.find(tag_of(key), [&](std::uint32_t slot) { return key_of[slot] == key; });
    };
    for (int turn = 0; turn < 100000; ++turn) {
        const Key key = (random() % 64) << 32 | (random() & tag_mask);
        const auto found = model.find(key);
        CHECK(find(key) == (found == model.end() ? BucketIndex::kNone : found->second));
        const bool insert = random() % (max_rows + 1) >= present.size();
        if (insert && found == model.end()) {
            if (free.empty()) {
                free.push_back(static_cast<std::uint32_t>(key_of.size()));
                key_of.push_back(0);
            }
            const std::uint32_t slot = free.back();
            free.pop_back();
            key_of[slot] = key;
            index.reserve_one(arena);
            index.insert(tag_of(key), slot);
            model[key] = slot;
            present.push_back(key);
        } else if (!insert) {
            std::swap(present[random() % present.size()], present.back());
            const Key victim = present.back();
            present.pop_back();
            index.erase(tag_of(victim), model[victim]);
            free.push_back(model[victim]);
            model.erase(victim);
            CHECK(find(victim) == BucketIndex::kNone);
        }
        CHECK(index.size() == model.size());
    }
    for (const auto& [key, slot] : model) CHECK(find(key) == slot);
    std::set<std::uint32_t> slots;
    index.for_each_slot([&](std::uint32_t slot) { slots.insert(slot); });
    CHECK(slots.size() == model.size());
}

void empty_index_finds_nothing() {
    const BucketIndex index;
    CHECK(index.find(0, [](std::uint32_t) { return true; }) == BucketIndex::kNone);
    CHECK(index.find(UINT32_MAX, [](std::uint32_t) { return true; }) == BucketIndex::kNone);
}

// Rows of all slots are distinct memory, stay where they are, and freed ones are used again before new ones.
void rows_never_overlap_or_move(std::uint32_t dim, std::uint32_t count) {
    Arena arena;
    const RowLayout layout(dim, 1);
    CHECK(layout.stride % 16 == 0);
    CHECK(layout.stride >= sizeof(Row) + 4 * (dim + 1));
    BucketRows rows;
    std::vector<Row*> where;
    for (std::uint32_t i = 0; i < count; ++i) {
        CHECK(rows.take(layout, arena) == i);
        where.push_back(rows.at(i, layout));
        where[i]->key = i;
        std::fill_n(where[i]->data(), dim + 1, static_cast<float>(i));
    }
    for (std::uint32_t i = 0; i < count; ++i) {
        CHECK(rows.at(i, layout) == where[i]);
        CHECK(where[i]->key == i);
        for (std::uint32_t d = 0; d <= dim; ++d) CHECK(where[i]->data()[d] == static_cast<float>(i));
    }
    rows.give_back(3, layout);
    rows.give_back(5, layout);
    CHECK(rows.take(layout, arena) == 5);
    CHECK(rows.take(layout, arena) == 3);
    CHECK(rows.take(layout, arena) == count);
    CHECK(arena.held_bytes() >= std::size_t{layout.stride} * count);
    // Little more than needed: the newest chunk, and the newest region of the arena, which at most doubled.
    CHECK(arena.held_bytes() <= 4 * std::size_t{layout.stride} * count + (std::size_t{2} << 20));
}

int main() {
    for (std::uint32_t seed = 0; seed < 4; ++seed) {
        index_equals_unordered_map(seed, 0x3, 40);
        index_equals_unordered_map(seed, 0xf000000f, 200);
        index_equals_unordered_map(seed, 0xffffffff, 3000);
    }
    empty_index_finds_nothing();
    rows_never_overlap_or_move(1, 20000);
    rows_never_overlap_or_move(16, 20000);
    rows_never_overlap_or_move(1000, 500);
    rows_never_overlap_or_move(40000, 20);
}
