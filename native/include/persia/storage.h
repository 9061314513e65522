// The number formats in which a table keeps weights and optimizer state.
//
// 16-bit formats round stochastically after an update, up with the probability that makes the expected value
// exact: else updates smaller than half a unit in the last place would never add up. The random numbers are a
// function of `start` and the column, and `start` of (seed, key, step), so nothing else changes a result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace persia {

enum class Storage { kFp32, kFp16, kBf16 };

// "fp32", "fp16" or "bf16"; throws std::invalid_argument for another name.
Storage storage_of(const std::string& name);

constexpr std::size_t bytes_of(Storage storage) { return storage == Storage::kFp32 ? 4 : 2; }

// n elements between fp32 and a row in `storage`, which needs 2-byte alignment (fp32: 4).
void load(Storage storage, const std::byte* from, float* to, std::size_t n);
void store_nearest(Storage storage, const float* from, std::byte* to, std::size_t n);  // ties to even
// Finite values stay finite: too large ones become the largest.
void store_stochastic(Storage storage, const float* from, std::byte* to, std::size_t n, std::uint64_t start);

}  // namespace persia
