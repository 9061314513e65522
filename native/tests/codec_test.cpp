#include "persia/codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include "check.h"
#include "persia/key.h"

using namespace persia;

// Every fp16, against its definition.
void decoding_is_exact() {
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        const Half half{static_cast<std::uint16_t>(bits)};
        const int exponent = static_cast<int>(bits >> 10 & 31);
        const double fraction = bits & 1023;
        const float portable = decode_half_portable(half);
        float built;
        decode_half(&half, &built, 1);
        CHECK(bits_of(built) == bits_of(portable));
        if (exponent == 31) {
            CHECK(fraction != 0 ? std::isnan(portable) : std::isinf(portable));
        } else {
            const double size =
                exponent == 0 ? fraction * 0x1p-24 : std::ldexp(1024 + fraction, exponent - 25);
            CHECK(std::fabs(portable) == size);
        }
        CHECK(std::signbit(portable) == (bits >> 15 == 1));
        if (!std::isnan(portable)) CHECK(encode_half_portable(portable).bits == bits);
    }
}

// Each pair of neighbours and what lies between, since only there can rounding go wrong.
void encoding_rounds_to_nearest_even() {
    for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
        const float low = decode_half_portable({static_cast<std::uint16_t>(bits)});
        const bool last = bits + 1 == 0x7c00;
        const float high = last ? 65536.0f : decode_half_portable({static_cast<std::uint16_t>(bits + 1)});
        const float middle = low + (high - low) / 2;
        const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
        for (const float sign : {1.0f, -1.0f}) {
            const std::uint32_t s = sign < 0 ? 0x8000 : 0;
            const float inf = std::numeric_limits<float>::infinity();
            CHECK(encode_half_portable(sign * std::nextafterf(middle, 0)).bits == (s | bits));
            CHECK(encode_half_portable(sign * middle).bits == (s | even));
            CHECK(encode_half_portable(sign * std::nextafterf(middle, inf)).bits == (s | (bits + 1)));
        }
    }
}

// What the build uses, in whole vectors and in rests, equals the software.
void built_encoder_equals_the_portable_one() {
    std::vector<float> values;
    for (std::uint64_t i = 0; i < 1 << 20; ++i)
        values.push_back(float_of(static_cast<std::uint32_t>(mix(i))));
    for (const std::size_t n :
         {std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{19}, values.size()}) {
        std::vector<Half> halves(n);
        encode_half(values.data(), halves.data(), n);
        for (std::size_t i = 0; i < n; ++i) CHECK(halves[i].bits == encode_half_portable(values[i]).bits);
    }
}

void finite_checks_see_every_position() {
    const float bad[] = {std::nanf(""), std::numeric_limits<float>::infinity(), float_of(0xff800000u)};
    for (std::size_t n = 0; n < 40; ++n) {
        std::vector<float> values(n, -std::numeric_limits<float>::max());
        CHECK(all_finite(values.data(), n));
        for (std::size_t i = 0; i < n; ++i) {
            for (const float value : bad) {
                const float kept = values[i];
                values[i] = value;
                CHECK(!all_finite(values.data(), n));
                values[i] = kept;
            }
        }
    }
}

template <typename Wire>
std::vector<float> travelled(const std::vector<float>& row) {
    alignas(32) std::byte wire[512];
    std::fill(std::begin(wire), std::end(wire), std::byte{0xa5});
    std::byte* const at = wire + 4;  // as a row in the middle of an array may lie
    CHECK(row.size() < 100);
    Wire::encode(row.data(), at, row.size());
    CHECK(wire[3] == std::byte{0xa5} && wire[4 + Wire::bytes(row.size())] == std::byte{0xa5});
    std::vector<float> back(row.size() + 1, 7.0f);
    Wire::decode(at, back.data(), row.size());
    CHECK(back.back() == 7.0f);
    back.pop_back();
    return back;
}

template <typename Wire>
void odd_rows_survive() {
    const float inf = std::numeric_limits<float>::infinity();
    for (std::size_t dim = 1; dim < 36; ++dim) {
        for (const float x : travelled<Wire>(std::vector<float>(dim, 0.0f))) CHECK(x == 0);
        for (std::size_t at = 0; at < dim; ++at) {
            for (const float bad : {inf, -inf, std::nanf(""), float_of(0x7f800001u), float_of(0xffffffffu)}) {
                std::vector<float> row(dim, 1e-3f);
                row[at] = bad;
                CHECK(!all_finite(travelled<Wire>(row).data(), dim));
            }
        }
    }
}

// Distance to what arrives, over the largest magnitude of the row.
template <typename Wire>
double worst_error(float size) {
    double worst = 0;
    for (std::size_t dim = 1; dim < 70; ++dim) {
        std::vector<float> row(dim);
        double norm = 0;
        for (std::size_t d = 0; d < dim; ++d) {
            row[d] = size * (static_cast<float>(mix(100 * dim + d) >> 40) * 0x1p-23f - 1.0f);
            norm = std::max(norm, std::fabs(static_cast<double>(row[d])));
        }
        const std::vector<float> back = travelled<Wire>(row);
        for (std::size_t d = 0; d < dim; ++d)
            worst = std::max(worst, std::fabs(static_cast<double>(back[d]) - row[d]) / norm);
    }
    return worst;
}

void formats_are_as_exact_as_they_say() {
    for (const float size : {1e-40f, 1e-30f, 1e-7f, 1.0f, 3e4f, 1e30f, 3e38f}) {
        CHECK(worst_error<WireFp32>(size) == 0);
        CHECK(worst_error<WireBf16>(size) <= (size < 1e-37f ? 1.0 : 0x1p-8));
        // what an fp32 subnormal can hold is the limit there
        CHECK(worst_error<WireScaledFp16>(size) <= (size < 1e-37f ? 0x1p-10 : 0x1.01p-12));
    }
    CHECK(worst_error<WireFp16>(1.0f) <= 0x1p-11);
    CHECK(worst_error<WireFp16>(1e-7f) > 0.1);  // why there is the scaled one
}

void bf16_rounds_to_nearest_even() {
    for (std::uint32_t high = 0; high < 0x7f80; ++high) {
        const std::uint32_t low = high << 16;
        for (const std::uint32_t sign : {0u, 0x80000000u}) {
            const std::vector<float> row = {float_of(sign | low), float_of(sign | (low + 0x7fffu)),
                                            float_of(sign | (low + 0x8000u)),
                                            float_of(sign | (low + 0x8001u))};
            const std::vector<float> back = travelled<WireBf16>(row);
            const std::uint32_t up = low + 0x10000u;
            CHECK(bits_of(back[0]) == (sign | low) && bits_of(back[1]) == (sign | low));
            CHECK(bits_of(back[2]) == (sign | (high % 2 ? up : low)) && bits_of(back[3]) == (sign | up));
        }
    }
}

void scaled_fp16_keeps_what_lies_far_below_the_largest() {
    for (const float norm : {1e-35f, 1e-7f, 1.0f, 3.4e38f}) {
        std::vector<float> row(16, 0.0f);
        row[3] = -norm;
        for (std::size_t d = 4; d < 16; ++d) row[d] = norm * std::ldexp(1.3f, -2 * static_cast<int>(d));
        const std::vector<float> back = travelled<WireScaledFp16>(row);
        CHECK(back[3] == -norm);
        for (std::size_t d = 4; d < 15; ++d) {
            if (row[d] > 1e-37f) CHECK(std::fabs(back[d] - row[d]) <= 0x1.01p-11f * row[d]);
        }
    }
}

int main() {
    decoding_is_exact();
    encoding_rounds_to_nearest_even();
    built_encoder_equals_the_portable_one();
    finite_checks_see_every_position();
    odd_rows_survive<WireFp32>();
    odd_rows_survive<WireFp16>();
    odd_rows_survive<WireBf16>();
    odd_rows_survive<WireScaledFp16>();
    formats_are_as_exact_as_they_say();
    bf16_rounds_to_nearest_even();
    scaled_fp16_keeps_what_lies_far_below_the_largest();
}
