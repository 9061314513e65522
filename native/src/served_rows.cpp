#include "persia/served_rows.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "persia/lanes.h"
#include "persia/wire.h"

namespace persia {
namespace {

constexpr float kMost = 127.0f;
constexpr std::int32_t kInfinity = 0x7f800000;
constexpr float kLargest = std::numeric_limits<float>::max();

template <class Run>
auto with_format(RowFormat format, const Run& run) {
    switch (format) {
        case RowFormat::kFp16:
            return run(WireFp16{});
        case RowFormat::kBf16:
            return run(WireBf16{});
        default:
            return run(WireFp32{});
    }
}

// Makes what was rounded from finite to infinite, as fp16 does beyond 65504, the largest finite number.
void stay_finite(const float* row, std::uint16_t* out, std::size_t dim, std::uint16_t infinity) {
    for (std::size_t d = 0; d < dim; ++d) {
        const bool finite = (bits_of(row[d]) & 0x7fffffffu) < 0x7f800000u;
        out[d] = static_cast<std::uint16_t>(out[d] - (finite && (out[d] & 0x7fffu) == infinity ? 1 : 0));
    }
}

float scale_of(const std::byte* in) {
    std::uint16_t high;
    std::memcpy(&high, in, sizeof high);
    const std::uint32_t bits = std::uint32_t{high} << 16;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return scale;
}

typedef std::int32_t Ints __attribute__((vector_size(kLanes * sizeof(std::int32_t))));

// The largest magnitude, which is never NaN, and for infinity the largest number. As integers, magnitudes are
// in the same order.
float largest_of(const float* row, std::size_t dim) {
    Ints mosts{};
    std::size_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        Ints bits;
        std::memcpy(&bits, row + d, sizeof bits);
        bits &= 0x7fffffff;
        bits = bits > kInfinity ? Ints{} : bits;
        mosts = bits > mosts ? bits : mosts;
    }
    std::int32_t most = mosts[0];
    for (std::size_t i = 1; i < kLanes; ++i) most = std::max(most, mosts[i]);
    for (; d < dim; ++d) {
        const auto bits = static_cast<std::int32_t>(bits_of(row[d]) & 0x7fffffffu);
        most = std::max(most, bits > kInfinity ? 0 : bits);
    }
    return float_of(static_cast<std::uint32_t>(std::min(most, kInfinity - 1)));
}

// To the nearest integer, ties to even, as std::nearbyint() does it, for magnitudes below 2^22: where these
// are added, floats have no fractions.
template <typename Number>
Number nearest(const Number& value) {
    constexpr float kWhole = 0x1.8p23f;
    return (value + kWhole) - kWhole;
}

void store_bytes(const Ints& values, std::int8_t* to) {
#ifdef __SSE2__
    __m128i halves[2];
    std::memcpy(halves, &values, sizeof halves);
    const __m128i words = _mm_packs_epi32(halves[0], halves[1]);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
#else
    for (std::size_t i = 0; i < kLanes; ++i) to[i] = static_cast<std::int8_t>(values[i]);
#endif
}

void encode_int8(const float* row, std::byte* out, std::size_t dim) {
    const float rounded_down = largest_of(row, dim) / kMost;
    const auto high = static_cast<std::uint16_t>((bits_of(rounded_down) + 0xffffu) >> 16);  // rounded up
    std::memcpy(out, &high, sizeof high);
    const float scale = scale_of(out), step = scale > 0 ? scale : 1.0f;
    auto* const to = reinterpret_cast<std::int8_t*>(out + sizeof high);
    const Lanes least = Lanes{} - kMost, most = Lanes{} + kMost;
    std::size_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        Lanes steps = nearest(load(row + d) / step);
        steps = steps > least ? steps : least;  // NaN too
        steps = steps < most ? steps : most;
        store_bytes(__builtin_convertvector(steps, Ints), to + d);
    }
    for (; d < dim; ++d) {
        float steps = nearest(row[d] / step);
        steps = steps > -kMost ? steps : -kMost;
        to[d] = static_cast<std::int8_t>(steps < kMost ? steps : kMost);
    }
}

void decode_int8(const std::byte* in, float* row, std::size_t dim) {
    const float scale = scale_of(in);
    const auto* const from = reinterpret_cast<const std::int8_t*>(in + 2);
    for (std::size_t d = 0; d < dim; ++d) {  // 127 scales may be more than the largest float
        const float value = scale * static_cast<float>(from[d]);
        row[d] = std::min(std::max(value, -kLargest), kLargest);
    }
}

}  // namespace

RowFormat row_format_of(const std::string& name) {
    if (name == "fp32") return RowFormat::kFp32;
    if (name == "fp16") return RowFormat::kFp16;
    if (name == "bf16") return RowFormat::kBf16;
    if (name == "int8") return RowFormat::kInt8;
    throw std::invalid_argument("rows: got '" + name + "', expected fp32, fp16, bf16 or int8");
}

std::size_t bytes_of(RowFormat format, std::size_t dim) {
    if (format == RowFormat::kInt8) return dim + 2;
    return with_format(format, [&](auto wire) { return wire.bytes(dim); });
}

void encode_row(RowFormat format, const float* row, std::byte* out, std::size_t dim) {
    if (format == RowFormat::kInt8) return encode_int8(row, out, dim);
    with_format(format, [&](auto wire) { wire.encode(row, out, dim); });
    auto* const halves = reinterpret_cast<std::uint16_t*>(out);
    if (format == RowFormat::kFp16) stay_finite(row, halves, dim, 0x7c00u);
    if (format == RowFormat::kBf16) stay_finite(row, halves, dim, 0x7f80u);
}

void encode_served(RowFormat format, Storage storage, const std::byte* const* rows, std::size_t n,
                   std::size_t dim, float* room, std::byte* out) {
    const std::size_t row_bytes = bytes_of(format, dim);
    for (std::size_t i = 0; i < n; ++i) {
        const float* values = reinterpret_cast<const float*>(rows[i]);
        if (storage != Storage::kFp32) {
            load(storage, rows[i], room, dim);
            values = room;
        }
        encode_row(format, values, out + i * row_bytes, dim);
    }
}

void decode_row(RowFormat format, const std::byte* in, float* row, std::size_t dim) {
    if (format == RowFormat::kInt8) return decode_int8(in, row, dim);
    with_format(format, [&](auto wire) { wire.decode(in, row, dim); });
}

}  // namespace persia
