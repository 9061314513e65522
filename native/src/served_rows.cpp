#include "persia/served_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "persia/wire.h"

namespace persia {
namespace {

constexpr float kMost = 127.0f;
constexpr std::uint32_t kInfinity = 0x7f800000u;
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

void encode_int8(const float* row, std::byte* out, std::size_t dim) {
    // As integers, whose largest is found many at a time: magnitudes are in the same order; NaN is none.
    std::uint32_t most = 0;
    for (std::size_t d = 0; d < dim; ++d) {
        const std::uint32_t magnitude = bits_of(row[d]) & 0x7fffffffu;
        most = std::max(most, magnitude > kInfinity ? 0u : magnitude);
    }
    most = std::min(most, kInfinity - 1);  // infinity becomes the largest number
    float largest;
    std::memcpy(&largest, &most, sizeof largest);
    const auto high = static_cast<std::uint16_t>((bits_of(largest / kMost) + 0xffffu) >> 16);  // rounded up
    std::memcpy(out, &high, sizeof high);
    const float scale = scale_of(out), step = scale > 0 ? scale : 1.0f;
    auto* const to = reinterpret_cast<std::int8_t*>(out + sizeof high);
    for (std::size_t d = 0; d < dim; ++d) {
        float steps = std::nearbyint(row[d] / step);
        steps = steps > -kMost ? steps : -kMost;  // NaN too
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

void decode_row(RowFormat format, const std::byte* in, float* row, std::size_t dim) {
    if (format == RowFormat::kInt8) return decode_int8(in, row, dim);
    with_format(format, [&](auto wire) { wire.decode(in, row, dim); });
}

}  // namespace persia
