#include "persia/arena.h"

#include <algorithm>
#include <new>
#include <random>
#include <string>

#include "check.h"

using namespace persia;

namespace {

struct Piece {
    unsigned char* data;
    std::size_t bytes;
    unsigned char value;
};

// Pieces of all sizes are aligned zeros, and what is written to one stays there whatever comes after.
void pieces_are_zeros_of_their_own(std::size_t most_bytes, int count, std::uint64_t seed) {
    Arena arena;
    CHECK(arena.held_bytes() == 0);
    std::mt19937_64 random(seed);
    std::vector<Piece> pieces;
    std::size_t sum = 0;
    for (int i = 0; i < count; ++i) {
        const std::size_t bytes = 1 + random() % (random() % 4 == 0 ? most_bytes : most_bytes / 100 + 1);
        auto* const data = static_cast<unsigned char*>(arena.allocate(bytes));
        CHECK(reinterpret_cast<std::uintptr_t>(data) % 64 == 0);
        CHECK(std::all_of(data, data + bytes, [](unsigned char byte) { return byte == 0; }));
        pieces.push_back({data, bytes, static_cast<unsigned char>(1 + i % 255)});
        std::fill_n(data, bytes, pieces.back().value);
        sum += bytes;
        CHECK(arena.held_bytes() >= sum);
    }
    for (const Piece& piece : pieces) {
        CHECK(std::all_of(piece.data, piece.data + piece.bytes,
                          [&](unsigned char byte) { return byte == piece.value; }));
    }
}

// A large region counts as far as it was handed out.
void untouched_pages_do_not_count() {
    Arena arena;
    arena.allocate(1);
    CHECK(arena.held_bytes() < 16384);
    for (int i = 0; i < 40; ++i) arena.allocate(std::size_t{1} << 20);
    const std::size_t before = arena.held_bytes();
    CHECK(before < std::size_t{46} << 20);
    arena.allocate(std::size_t{3} << 20);
    CHECK(arena.held_bytes() < before + (std::size_t{6} << 20));
}

void what_there_is_not_is_told_and_nothing_is_lost() {
    Arena arena;
    auto* const kept = static_cast<char*>(arena.allocate(100));
    kept[99] = 5;
    std::string text;
    try {
        arena.allocate(std::size_t{1} << 60);
    } catch (const std::bad_alloc& error) {
        text = error.what();
    }
    CHECK(text.find("bytes of memory") != std::string::npos);
    CHECK(kept[99] == 5);
    static_cast<char*>(arena.allocate(1000))[999] = 1;
}

}  // namespace

int main() {
    pieces_are_zeros_of_their_own(1000, 5000, 1);
    pieces_are_zeros_of_their_own(300000, 400, 2);
    pieces_are_zeros_of_their_own(6000000, 30, 3);
    untouched_pages_do_not_count();
    what_there_is_not_is_told_and_nothing_is_lost();
}
