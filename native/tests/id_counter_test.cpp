#include "persia/id_counter.h"

#include <map>
#include <random>
#include <vector>

#include "check.h"

using namespace persia;

// Against std::map: ids of a small range, so that they repeat, and ones that share all low bits.
int main() {
    std::mt19937_64 random(1);
    std::map<std::uint64_t, std::uint64_t> expected;
    IdCounter counter;
    const std::vector<std::uint64_t> nothing = {0, 7};
    std::vector<std::uint64_t> replaced(2);
    counter.replace_unknown(nothing, replaced, 9);
    CHECK(replaced[0] == 9 && replaced[1] == 9);
    for (int round = 0; round < 200; ++round) {
        std::vector<std::uint64_t> ids(random() % 300), counts(ids.size());
        for (std::size_t i = 0; i < ids.size(); ++i) {
            ids[i] = round % 2 ? random() % 20000 : unmix((random() % 500) << 40);
            counts[i] = 1 + random() % 3;
            expected[ids[i]] += round % 3 ? 1 : counts[i];
        }
        if (round % 3) {
            counter.add(ids);
        } else {
            counter.add(ids, counts);
        }
        CHECK(counter.size() == expected.size());
    }
    std::vector<std::uint64_t> ids(counter.size()), counts(counter.size());
    counter.items(ids, counts);
    std::map<std::uint64_t, std::uint64_t> got;
    for (std::size_t i = 0; i < ids.size(); ++i) got[ids[i]] = counts[i];
    CHECK(got == expected);
    std::vector<std::uint64_t> asked(5000);
    for (auto& id : asked) id = random() % 40000;
    std::vector<std::uint64_t> out(asked);
    counter.replace_unknown(out, out, 1u << 30);
    for (std::size_t i = 0; i < asked.size(); ++i)
        CHECK(out[i] == (expected.count(asked[i]) ? asked[i] : 1u << 30));
    return 0;
}
