#include "persia/codec.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "persia/key.h"

using namespace persia;

float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

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

int main() {
    decoding_is_exact();
    encoding_rounds_to_nearest_even();
    built_encoder_equals_the_portable_one();
    finite_checks_see_every_position();
}
