// The two halves of a walk (shard.h) for eight keys at a time, see wide_probes.h.
#pragma once

#include <algorithm>

#include "persia/shard.h"
#include "wide_probes.h"

#ifdef PERSIA_WIDE
namespace persia {

// rest: room for kEight more than there are keys.
template <class Touch, class Use>
PERSIA_WIDE std::size_t Shard::walk_homes_wide(const Keys keys, const Span<std::uint32_t> slots,
                                               std::uint32_t* const rest, const Touch& touch,
                                               const Use& use) const {
    constexpr std::size_t kMatch = 3, kUse = 7, kBlocks = 8;  // as in walk_homes()
    Eight blocks[kBlocks];
    const KeyIndex::HomeLines homes(index_);
    const RowStore::Weights weights(rows_);
    const std::size_t row_lines = rows_.weight_lines();
    const std::size_t n = keys.size(), num_blocks = (n + kEight - 1) / kEight;
    std::size_t num_rest = 0;
    for (std::size_t ahead = 0; ahead < num_blocks + kUse; ++ahead) {
        const auto size = [n](std::size_t block) { return std::min(kEight, n - block * kEight); };
        const std::size_t to_match = ahead - kMatch, to_use = ahead - kUse;  // below 0: huge
        Eight& coming = blocks[ahead % kBlocks];
        Eight& come = blocks[to_match % kBlocks];
        if (ahead < num_blocks) {
            take_keys(coming, &keys[ahead * kEight], size(ahead));
            find_lines<false>(coming, homes, bucket_of_.shift(), config_.first_bucket);
        }
        if (to_match < num_blocks) {
            const std::size_t begin = to_match * kEight, count = size(to_match);
            const unsigned others = find_slots(come, touch, weights) & ((1u << count) - 1);
            put_slots(come, &slots[begin], count);
            num_rest += list_bits(others, begin, rest + num_rest);
        }
        if (ahead < num_blocks) prefetch_lines_of(coming);
        if (to_match < num_blocks) prefetch_rows_of(come, row_lines);
        if (to_use < num_blocks) use(to_use * kEight, blocks[to_use % kBlocks].rows, size(to_use));
    }
    return num_rest;
}

template <class Touch, class Resolve, class UseRest>
PERSIA_WIDE void Shard::walk_rest_wide(const Keys keys, const Span<std::uint32_t> slots,
                                       const Span<const std::uint32_t> rest, const Touch& touch,
                                       const Resolve& resolve, const UseRest& use_rest) const {
    constexpr std::size_t kMatch = 2, kUse = 4, kBlocks = 8;
    Eight blocks[kBlocks];
    bool fresh[kBlocks][kEight];
    const std::size_t row_lines = rows_.weight_lines();
    const std::size_t n = rest.size(), num_blocks = (n + kEight - 1) / kEight;
    for (std::size_t ahead = 0; ahead < num_blocks + kUse; ++ahead) {
        const auto size = [n](std::size_t block) { return std::min(kEight, n - block * kEight); };
        const std::size_t to_match = ahead - kMatch, to_use = ahead - kUse;  // below 0: huge
        if (ahead < num_blocks) {
            Eight& of = blocks[ahead % kBlocks];
            for (std::size_t i = 0; i < kEight; ++i)
                of.keys[i] = keys[rest[std::min(ahead * kEight + i, n - 1)]];
            // Which resolve() may have changed.
            find_lines<true>(of, KeyIndex::HomeLines(index_), bucket_of_.shift(), config_.first_bucket);
            prefetch_lines_of(of);
        }
        if (to_match < num_blocks) {
            Eight& of = blocks[to_match % kBlocks];
            bool* const is_fresh = fresh[to_match % kBlocks];
            const unsigned others = find_slots(of, touch, RowStore::Weights(rows_));
            prefetch_rows_of(of, row_lines);
            for (std::size_t i = 0; i < size(to_match); ++i) {
                const std::size_t at = rest[to_match * kEight + i];
                is_fresh[i] = false;
                if ((others >> i & 1u) != 0) {
                    of.slots[i] = resolve(keys[at], is_fresh[i]);
                    of.rows[i] = of.slots[i] != kNoSlot ? rows_.weights(of.slots[i]) : nullptr;
                    prefetch_cold_lines(of.rows[i], row_lines);
                }
                slots[at] = of.slots[i];
            }
        }
        if (to_use < num_blocks) {
            const Eight& of = blocks[to_use % kBlocks];
            for (std::size_t i = 0; i < size(to_use); ++i)
                use_rest(rest[to_use * kEight + i], of.rows[i], fresh[to_use % kBlocks][i]);
        }
    }
}

}  // namespace persia
#endif
