// One stable pass of a radix sort, by all threads of a team.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/span.h"
#include "persia/thread_team.h"

namespace persia {

constexpr unsigned kDigitBits = 11;  // the places to write to then fit the first cache

// Writes the items in the order of digit(item), which is below 2^kDigitBits, into `to`; equal ones stay in
// their order. Returns false, having written nothing, if all are equal.
template <typename Item, typename Digit>
bool radix_pass(Span<const Item> from, Span<Item> to, const Digit& digit, ThreadTeam& team) {
    constexpr std::size_t kDigits = std::size_t{1} << kDigitBits;
    const std::size_t n = from.size(), threads = team.size();
    std::vector<std::array<std::size_t, kDigits>> places(threads);
    const auto part = [&](unsigned i) { return from.slice(n * i / threads, n * (i + 1) / threads); };
    team.run([&](unsigned i) {
        places[i].fill(0);
        for (const Item& item : part(i)) ++places[i][digit(item)];
    });
    std::size_t place = 0;
    for (std::size_t d = 0; d < kDigits; ++d) {
        const std::size_t before = place;
        for (auto& mine : places) {
            const std::size_t count = mine[d];
            mine[d] = place;
            place += count;
        }
        if (place - before == n) return false;
    }
    team.run([&](unsigned i) {
        auto& mine = places[i];
        for (const Item& item : part(i)) to[mine[digit(item)]++] = item;
    });
    return true;
}

}  // namespace persia
