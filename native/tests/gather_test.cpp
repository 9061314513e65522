#include "persia/gather.h"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"

using namespace persia;

namespace {

std::vector<std::uint8_t> random_bytes(std::size_t size, std::mt19937& random) {
    std::vector<std::uint8_t> bytes(size);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    return bytes;
}

void equals_a_plain_loop(std::size_t row_bytes, std::size_t num_rows, std::size_t num_out) {
    std::mt19937 random(static_cast<unsigned>(row_bytes));
    const std::vector<std::uint8_t> source = random_bytes(num_rows * row_bytes, random);
    std::vector<std::int64_t> rows(num_out);
    for (std::int64_t& row : rows) row = static_cast<std::int64_t>(random() % num_rows);
    std::vector<std::uint8_t> out(num_out * row_bytes), expected;
    for (const std::int64_t row : rows) {
        const auto begin = source.begin() + row * static_cast<std::int64_t>(row_bytes);
        expected.insert(expected.end(), begin, begin + static_cast<std::int64_t>(row_bytes));
    }
    CHECK(gather(source, row_bytes, rows, out));
    CHECK(out == expected);
}

// What came before it is written, the rest is as it was.
void stops_at_a_row_that_is_not_there(std::size_t row_bytes, std::int64_t wrong) {
    std::mt19937 random(1);
    const std::vector<std::uint8_t> source = random_bytes(10 * row_bytes, random);
    const std::vector<std::int64_t> rows{9, 0, wrong, 3};
    std::vector<std::uint8_t> out(4 * row_bytes, 0xee);
    CHECK(!gather(source, row_bytes, rows, out));
    const auto at = [&](std::size_t row) {
        return out.begin() + static_cast<std::ptrdiff_t>(row * row_bytes);
    };
    CHECK(std::equal(at(0), at(1), source.end() - static_cast<std::ptrdiff_t>(row_bytes)));
    CHECK(std::equal(at(1), at(2), source.begin()));
    CHECK(std::all_of(at(2), at(4), [](std::uint8_t byte) { return byte == 0xee; }));
}

}  // namespace

int main() {
    for (const std::size_t row_bytes : {1, 3, 4, 5, 8, 16, 52, 100}) {
        equals_a_plain_loop(row_bytes, 1, 10);
        equals_a_plain_loop(row_bytes, 1000, 3000);
        equals_a_plain_loop(row_bytes, 5, 0);
        for (const std::int64_t wrong : {std::int64_t{10}, std::int64_t{-1}, INT64_MAX, INT64_MIN}) {
            stops_at_a_row_that_is_not_there(row_bytes, wrong);
        }
    }
}
