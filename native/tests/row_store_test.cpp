#include "persia/row_store.h"

#include <algorithm>
#include <vector>

#include "check.h"

using namespace persia;

// Rows of all slots are distinct memory, stay where they are, and freed ones are used again before new ones.
void rows_never_overlap_or_move(std::size_t weight_bytes, std::size_t state_bytes, std::uint32_t count) {
    Arena arena;
    RowStore rows(weight_bytes, state_bytes, count);
    const auto fill = [&](std::uint32_t slot, std::byte value) {
        std::fill_n(rows.weights(slot), weight_bytes, value);
        std::fill_n(rows.state(slot), state_bytes, value);
    };
    std::vector<std::byte*> where;
    for (std::uint32_t i = 0; i < count; ++i) {
        CHECK(rows.take(arena) == i);
        where.push_back(rows.weights(i));
        rows.epoch(i) = i;
        fill(i, static_cast<std::byte>(i % 251));
    }
    for (std::uint32_t i = 0; i < count; ++i) {
        CHECK(rows.weights(i) == where[i]);
        CHECK(rows.epoch(i) == i);
        for (std::size_t b = 0; b < weight_bytes; ++b) CHECK(where[i][b] == static_cast<std::byte>(i % 251));
        const std::byte* state = rows.state(i);
        for (std::size_t b = 0; b < state_bytes; ++b) CHECK(state[b] == static_cast<std::byte>(i % 251));
    }
    rows.give_back(3);
    rows.give_back(5);
    CHECK(rows.epoch(3) == kFreed);
    CHECK(rows.take(arena) == 5);
    CHECK(rows.take(arena) == 3);
    CHECK(rows.take(arena) == count);
    const std::size_t needed = (weight_bytes + state_bytes + 4) * count;
    CHECK(arena.held_bytes() >= needed);
    // Little more than needed: the newest chunk, and what the newest region has left before a page.
    CHECK(arena.held_bytes() <= needed + needed / 20 + (std::size_t{3} << 20));
}

int main() {
    rows_never_overlap_or_move(4, 0, 20000);
    rows_never_overlap_or_move(64, 68, 20000);
    rows_never_overlap_or_move(2 * 1001, 4004, 500);
    rows_never_overlap_or_move(160000, 4, 20);
}
