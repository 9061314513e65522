#include "persia/limits.h"

#include <cstring>
#include <random>
#include <vector>

#include "check.h"

using namespace persia;

namespace {

using Words = std::vector<std::uint32_t>;

Span<std::byte> bytes_of(Words& words) {
    return {reinterpret_cast<std::byte*>(words.data()), words.size() * sizeof words[0]};
}

// Gradients are added to the rows they belong to and to no others, and both ways to gather copy them.
void rows_are_updated_and_gathered(std::size_t row_words, std::size_t state_words) {
    constexpr std::uint64_t kRows = 500;
    constexpr std::size_t kTouched = 300;
    const std::size_t row_bytes = 4 * row_words;
    MemoryLimits limits(kRows, row_bytes, 4 * state_words);
    CHECK(limits.num_rows() == kRows && limits.row_bytes() == row_bytes);
    std::vector<Words> model(kRows, Words(row_words, 0x01010101));
    std::mt19937 random(static_cast<unsigned>(row_words));
    for (int turn = 0; turn < 5; ++turn) {
        std::vector<std::uint64_t> places(kTouched), entries(kTouched);
        Words gradients(kTouched * row_words), gathered(kTouched * row_words), again(kTouched * row_words);
        for (std::uint64_t& place : places) place = random() % kRows;
        for (std::uint64_t& entry : entries) entry = random() % kRows;
        for (std::uint32_t& gradient : gradients) gradient = static_cast<std::uint32_t>(random());
        limits.update(places, bytes_of(gradients));
        for (std::size_t i = 0; i < kTouched; ++i) {
            for (std::size_t w = 0; w < row_words; ++w) {
                model[places[i]][w] += gradients[i * row_words + w];
            }
        }
        for (std::uint64_t& place : places) place = random() % kRows;
        limits.gather(places, bytes_of(gathered));
        limits.gather_with_entries(places, entries, bytes_of(again));
        for (std::size_t i = 0; i < kTouched; ++i) {
            CHECK(std::memcmp(&gathered[i * row_words], model[places[i]].data(), row_bytes) == 0);
        }
        CHECK(again == gathered);
    }
}

}  // namespace

int main() {
    rows_are_updated_and_gathered(1, 0);
    rows_are_updated_and_gathered(8, 1);
    rows_are_updated_and_gathered(33, 66);
}
