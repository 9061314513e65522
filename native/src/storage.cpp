#include "persia/storage.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "persia/codec.h"
#include "persia/key.h"

namespace persia {
namespace {

std::uint16_t bf16_nearest(float value) {
    const std::uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);  // NaN
    return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// random: 16 bits.
std::uint16_t bf16_stochastic(float value, std::uint32_t random) {
    const std::uint32_t bits = bits_of(value);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bf16_nearest(value);
    const std::uint32_t rounded = (bits + random) >> 16;
    return static_cast<std::uint16_t>((rounded & 0x7fffu) == 0x7f80u ? rounded - 1 : rounded);
}

// The fp32 value of the fp16 that `value` is rounded to.
float fp16_stochastic(float value, std::uint32_t random) {
    if (!std::isfinite(value)) return value;
    const float magnitude = std::fabs(value);
    if (magnitude >= 65504.0f) return std::copysign(65504.0f, value);
    if (magnitude >= 0x1p-14f) return float_of((bits_of(value) + (random & 0x1fffu)) & ~0x1fffu);
    const float units = magnitude * 0x1p24f;  // exact: subnormal fp16 are multiples of 2^-24
    return std::copysign(std::floor(units + static_cast<float>(random) * 0x1p-16f) * 0x1p-24f, value);
}

}  // namespace

Storage storage_of(const std::string& name) {
    if (name == "fp32") return Storage::kFp32;
    if (name == "fp16") return Storage::kFp16;
    if (name == "bf16") return Storage::kBf16;
    throw std::invalid_argument("storage: got '" + name + "', expected 'fp32', 'fp16' or 'bf16'");
}

void load(Storage storage, const std::byte* from, float* to, std::size_t n) {
    if (n == 0) return;
    if (storage == Storage::kFp32) {
        std::memcpy(to, from, n * sizeof *to);
    } else if (storage == Storage::kFp16) {
        decode_half(reinterpret_cast<const Half*>(from), to, n);
    } else {
        const auto* narrow = reinterpret_cast<const std::uint16_t*>(from);
        for (std::size_t i = 0; i < n; ++i) to[i] = float_of(std::uint32_t{narrow[i]} << 16);
    }
}

void store_nearest(Storage storage, const float* from, std::byte* to, std::size_t n) {
    if (n == 0) return;
    if (storage == Storage::kFp32) {
        std::memcpy(to, from, n * sizeof *from);
    } else if (storage == Storage::kFp16) {
        encode_half(from, reinterpret_cast<Half*>(to), n);
    } else {
        auto* narrow = reinterpret_cast<std::uint16_t*>(to);
        for (std::size_t i = 0; i < n; ++i) narrow[i] = bf16_nearest(from[i]);
    }
}

void store_stochastic(Storage storage, const float* from, std::byte* to, std::size_t n, std::uint64_t start) {
    if (n == 0) return;
    if (storage == Storage::kFp32) {
        std::memcpy(to, from, n * sizeof *from);
        return;
    }
    auto* narrow = reinterpret_cast<std::uint16_t*>(to);
    std::uint64_t random = 0;
    for (std::size_t i = 0; i < n; ++i) {
        random = i % 4 == 0 ? mix(start + i) : random >> 16;  // four numbers of 16 bits at a time
        const auto part = static_cast<std::uint32_t>(random & 0xffffu);
        if (storage == Storage::kBf16) {
            narrow[i] = bf16_stochastic(from[i], part);
        } else {
            const float rounded = fp16_stochastic(from[i], part);
            encode_half(&rounded, reinterpret_cast<Half*>(narrow + i), 1);
        }
    }
}

}  // namespace persia
