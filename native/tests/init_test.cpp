#include "persia/init.h"

#include <cmath>
#include <vector>

#include "check.h"

using namespace persia;

// Mean, spread, bounds and correlation of many rows; the tolerances are over five standard errors.
void moments_are_right(const RowInit& init, double mean, double deviation) {
    constexpr std::uint32_t dim = 7;
    constexpr int count = 40000;
    double sum = 0, squares = 0, neighbours = 0, keys = 0;
    std::vector<float> row(dim), previous(dim);
    for (int i = 0; i < count; ++i) {
        init.fill(mix(static_cast<Key>(i)), row.data(), dim);
        for (std::uint32_t d = 0; d < dim; ++d) {
            const double z = (row[d] - mean) / deviation;
            sum += z;
            squares += z * z;
            if (d > 0) neighbours += z * (row[d - 1] - mean) / deviation;
            if (i > 0) keys += z * (previous[d] - mean) / deviation;
        }
        previous = row;
    }
    const double n = static_cast<double>(count) * dim;
    const double error = 6 / std::sqrt(n);
    CHECK(std::fabs(sum / n) < error);
    CHECK(std::fabs(squares / n - 1) < 2 * error);
    CHECK(std::fabs(neighbours / n) < error);
    CHECK(std::fabs(keys / n) < error);
}

void rows_depend_on_seed_key_and_column_only(const char* kind) {
    std::vector<float> a(9), b(9), shorter(4);
    for (Key key : {Key{0}, Key{1}, UINT64_MAX}) {
        RowInit(kind, 0, 1, 5).fill(key, a.data(), 9);
        RowInit(kind, 0, 1, 5).fill(key, b.data(), 9);
        CHECK(a == b);
        RowInit(kind, 0, 1, 5).fill(key, shorter.data(), 4);
        CHECK(std::vector<float>(a.begin(), a.begin() + 4) == shorter);
        RowInit(kind, 0, 1, 6).fill(key, b.data(), 9);
        CHECK(a != b);
        RowInit(kind, 0, 1, 5).fill(key + 1, b.data(), 9);
        CHECK(a != b);
        for (int d = 1; d < 9; ++d) CHECK(a[d] != a[0]);
    }
}

int main() {
    moments_are_right(RowInit("uniform", -0.01, 0.03, 1), 0.01, 0.04 / std::sqrt(12.0));
    moments_are_right(RowInit("normal", 0.5, 0.02, 1), 0.5, 0.02);
    rows_depend_on_seed_key_and_column_only("uniform");
    rows_depend_on_seed_key_and_column_only("normal");
    std::vector<float> row(1000);
    RowInit("uniform", -0.01, 0.03, 9).fill(7, row.data(), 1000);
    for (const float value : row) CHECK(value >= -0.01f && value <= 0.03f);
}
