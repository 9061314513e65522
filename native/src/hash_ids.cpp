#include "persia/hash_ids.h"

namespace persia {
namespace {

std::uint64_t hashed_index(Id id, std::uint64_t round, std::uint64_t size) {
    const std::uint64_t hash = mix(id + (round + 1) * 0x9e3779b97f4a7c15u);
    return round * size + static_cast<std::uint64_t>((static_cast<unsigned __int128>(hash) * size) >> 64);
}

}  // namespace

void hash_ids(Span<const Id> ids, std::uint64_t rounds, std::uint64_t size, Span<Id> out) {
    Id* to = out.data();
    for (const Id id : ids) {
        for (std::uint64_t round = 0; round < rounds; ++round) *to++ = hashed_index(id, round, size);
    }
}

}  // namespace persia
