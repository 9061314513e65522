#include "persia/key.h"

#include <unordered_set>

#include "check.h"

using namespace persia;

// A map with an inverse on every tried value, both ways round, has no two equal images among them.
void mix_is_a_bijection() {
    std::uint64_t x = 0;
    for (int i = 0; i < 1000000; ++i) {
        x += 0x9e3779b97f4a7c15u;
        CHECK(unmix(mix(x)) == x);
        CHECK(mix(unmix(x)) == x);
        const auto small = static_cast<std::uint64_t>(i);
        CHECK(unmix(mix(small)) == small);
    }
    for (int bit = 0; bit < 64; ++bit) {
        const std::uint64_t power = std::uint64_t{1} << bit;
        CHECK(unmix(mix(power)) == power);
        CHECK(unmix(mix(~power)) == ~power);
    }
    CHECK(unmix(mix(UINT64_MAX)) == UINT64_MAX);
}

// The first outputs of a splitmix64 generator that starts at 0, as published with it.
void mix_is_splitmix64() {
    constexpr std::uint64_t golden = 0x9e3779b97f4a7c15u;
    CHECK(mix(golden) == 0xe220a8397b1dcdafu);
    CHECK(mix(2 * golden) == 0x6e789e6aa1b965f4u);
    CHECK(mix(3 * golden) == 0x06c45d188009454fu);
}

void buckets_are_the_high_bits() {
    CHECK(BucketOf(1)(0) == 0);
    CHECK(BucketOf(1)(UINT64_MAX) == 0);
    for (std::uint32_t log2 = 1; log2 <= 31; ++log2) {
        const BucketOf bucket_of(1u << log2);
        CHECK(bucket_of(0) == 0);
        CHECK(bucket_of(UINT64_MAX) == (1u << log2) - 1);
        const std::uint64_t edge = std::uint64_t{1} << (64 - log2);
        CHECK(bucket_of(edge - 1) == 0);
        CHECK(bucket_of(edge) == 1);
    }
}

void consecutive_ids_spread_over_buckets() {
    const BucketOf bucket_of(1024);
    std::unordered_set<std::uint32_t> seen;
    for (std::uint64_t id = 0; id < 16384; ++id) seen.insert(bucket_of(mix(id)));
    CHECK(seen.size() == 1024);
}

int main() {
    mix_is_a_bijection();
    mix_is_splitmix64();
    buckets_are_the_high_bits();
    consecutive_ids_spread_over_buckets();
}
