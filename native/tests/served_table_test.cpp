#include "persia/served_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"

using namespace persia;

namespace {

constexpr std::uint32_t kDim = 5;

std::vector<std::byte> encoded(const std::vector<Key>& keys, float more) {
    const std::size_t bytes = bytes_of(RowFormat::kFp32, kDim);
    std::vector<std::byte> rows(keys.size() * bytes);
    std::vector<float> row(kDim);
    for (std::size_t i = 0; i < keys.size(); ++i) {
        for (std::uint32_t d = 0; d < kDim; ++d) row[d] = static_cast<float>(keys[i] % 1000 + d) + more;
        encode_row(RowFormat::kFp32, row.data(), rows.data() + i * bytes, kDim);
    }
    return rows;
}

// Rows of a part, of changes and of neither, for as many keys as take all stages of a look-up.
void finds_rows() {
    std::mt19937_64 random(3);
    std::vector<Key> keys(5000);
    for (Key& key : keys) key = random();
    std::sort(keys.begin(), keys.end());
    const std::uint32_t shift = cell_shift(keys);
    const std::vector<std::uint32_t> cells = cells_of(keys, shift);
    const std::vector<std::byte> rows = encoded(keys, 0);
    ServedTable table(RowFormat::kFp32, kDim);
    table.add_part({keys, cells, shift, rows.data()});
    std::vector<Key> changed, removed;
    for (std::size_t i = 0; i < keys.size(); i += 3) changed.push_back(keys[i]);
    for (std::size_t i = 1; i < keys.size(); i += 3) removed.push_back(keys[i]);
    const std::vector<std::byte> newer = encoded(changed, 0.5f);
    table.add_changes(changed, newer.data(), removed);
    std::vector<Key> asked = keys;
    for (Key key = 1; key < 100; ++key) asked.push_back(key);
    std::vector<float> out(asked.size() * kDim);
    table.lookup(asked, out.data());
    for (std::size_t i = 0; i < asked.size(); ++i) {
        const bool there = i < keys.size() && i % 3 != 1;
        const float more = i % 3 == 0 ? 0.5f : 0.0f;
        CHECK(out[i * kDim] == (there ? static_cast<float>(keys[i] % 1000) + more : 0.0f));
    }
    CHECK(table.keys().size() == keys.size() - removed.size());
}

void holds_nothing_at_first() {
    const ServedTable table(RowFormat::kInt8, kDim);
    std::vector<float> out(kDim, 1.0f);
    table.lookup(std::vector<Key>{7}, out.data());
    CHECK(out[0] == 0.0f);
    CHECK(table.keys().empty());
}

// Finite elements stay finite, and those that aren't stay what they are; also beside eight others.
void rounds_nothing_to_infinity() {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kLargest = std::numeric_limits<float>::max();
    const std::vector<float> row = {1e6f,     -65520.0f, 65504.0f,      -0.5f, kInfinity,
                                    kLargest, -kLargest, std::nanf(""), -1e6f, -kInfinity};
    std::vector<std::byte> bytes(2 * row.size());
    std::vector<float> got(row.size());
    const auto round_trip = [&](RowFormat format) {
        encode_row(format, row.data(), bytes.data(), row.size());
        decode_row(format, bytes.data(), got.data(), row.size());
        for (std::size_t d = 0; d < row.size(); ++d) {
            CHECK(std::isfinite(got[d]) == std::isfinite(row[d]));
            CHECK(std::isnan(got[d]) == std::isnan(row[d]));
            CHECK(std::signbit(got[d]) == std::signbit(row[d]));
        }
        CHECK(got[3] == -0.5f && got[4] == kInfinity && got[9] == -kInfinity);
    };
    round_trip(RowFormat::kBf16);
    CHECK(got[5] == 0x1.fep127f && got[6] == -0x1.fep127f);
    round_trip(RowFormat::kFp16);
    CHECK(got[0] == 65504.0f && got[1] == -65504.0f && got[2] == 65504.0f);
    CHECK(got[5] == 65504.0f && got[6] == -65504.0f && got[8] == -65504.0f);
}

}  // namespace

int main() {
    finds_rows();
    holds_nothing_at_first();
    rounds_nothing_to_infinity();
}
