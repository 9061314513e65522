// Hash compression: an id stands for `rounds` rows, one of each of `rounds` spaces of `size` rows, that are
// summed.
//
// Two ids share all their rows with probability size^-rounds. The rounds draw independent hashes by
// splitmix64's increment, and a hash becomes an index by the multiplication of Lemire ("Fast random integer
// generation in an interval", 2019), which costs a tenth of a division; its bias is below size / 2^64.
#pragma once

#include <cstdint>

#include "persia/key.h"

namespace persia {

// Writes the `rounds` indices of each of the ids [N], one after the other, to out [N * rounds].
void hash_ids(Span<const Id> ids, std::uint64_t rounds, std::uint64_t size, Span<Id> out);

}  // namespace persia
