// ids, keys and buckets.
//
// A key is a bijective mix of an id, so two ids never collide. The high bits of a key name its bucket; the
// low 32 bits (the tag) give its home in the bucket's index, so the two are independent.
#pragma once

#include <cstdint>

#include "persia/span.h"

namespace persia {

using Id = std::uint64_t;
using Key = std::uint64_t;
using Keys = Span<const Key>;

// The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
constexpr std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// The inverse of mix(): the multipliers are the modular inverses, and x ^= x >> s is undone by repeating it
// with multiples of s until they pass 64.
constexpr std::uint64_t unmix(std::uint64_t x) {
    x = (x ^ (x >> 31) ^ (x >> 62)) * 0x319642b2d24d8ec3u;
    x = (x ^ (x >> 27) ^ (x >> 54)) * 0x96de1b173f119089u;
    return x ^ (x >> 30) ^ (x >> 60);
}

constexpr std::uint32_t tag_of(Key key) { return static_cast<std::uint32_t>(key); }

// key -> bucket for a power-of-two number of buckets. Two shifts, because one shift by 64 (one bucket) would
// be undefined.
class BucketOf {
  public:
    constexpr explicit BucketOf(std::uint32_t num_buckets) {
        while ((1u << bits_) < num_buckets) ++bits_;
        shift_ = 63 - bits_;
    }
    constexpr std::uint32_t operator()(Key key) const {
        return static_cast<std::uint32_t>((key >> 1) >> shift_);
    }
    constexpr std::uint32_t shift() const { return shift_; }

  private:
    std::uint32_t bits_ = 0;
    std::uint32_t shift_ = 63;
};

}  // namespace persia
