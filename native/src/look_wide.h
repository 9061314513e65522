// Shard's second looks (shard_differing.cpp) for eight keys at a time, see wide_probes.h.
#pragma once

#include "persia/shard.h"
#include "wide_probes.h"

namespace persia {

// What is done with a key's entry that is found again, and with which: the others are for a closer look.
struct SecondLook {
    std::uint32_t most;   // only if its slot was at most this before
    std::uint32_t below;  // and if its stamp is less than this
    std::uint32_t raise;  // its stamp becomes at least this
    std::uint32_t since;  // a greater stamp than this was one of a row that differs
};

#ifdef PERSIA_WIDE
struct Taken {
    __mmask8 here, differ;  // here: in these lines, and such as `look` wants
    __m256i slots;          // of those
};

PERSIA_WIDE inline __m256i together(const __m128i* one_each) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(first_of_each(one_each[0], one_each[1], one_each[2], one_each[3])),
        first_of_each(one_each[4], one_each[5], one_each[6], one_each[7]), 1);
}

// some: bits of the keys that may be taken.
PERSIA_WIDE inline Taken take_entries(const Eight& of, const SecondLook& look, unsigned some) {
    const __m128i below = _mm_set1_epi32(static_cast<int>(look.below));
    const __m128i raise = _mm_set1_epi32(static_cast<int>(look.raise));
    __m128i slots_of[kEight], stamps_of[kEight];  // slot + 1, or 0, and the stamp in the first element
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kEight; ++i) {
        IndexLine& line = *of.lines[i];
        auto* const stamps = reinterpret_cast<__m128i*>(line.stamps);
        const __m128i slots = _mm_load_si128(reinterpret_cast<const __m128i*>(line.slots));
        const __m128i older = _mm_load_si128(stamps);
        const __mmask8 equal =
            _mm256_mask_cmpeq_epi64_mask(static_cast<__mmask8>(0u - (some >> i & 1u)),
                                         _mm256_load_si256(reinterpret_cast<const __m256i*>(line.keys)),
                                         _mm256_set1_epi64x(static_cast<long long>(of.keys[i])));
        const __mmask8 here =
            _mm_mask_cmplt_epu32_mask(_mm_mask_test_epi32_mask(equal, slots, slots), older, below);
        slots_of[i] = _mm_maskz_compress_epi32(here, slots);
        stamps_of[i] = _mm_maskz_compress_epi32(here, older);
        if (look.raise != 0) _mm_store_si128(stamps, _mm_mask_max_epu32(older, here, older, raise));
    }
    const __m256i slots = together(slots_of);
    const __mmask8 here = _mm256_test_epi32_mask(slots, slots);
    const __mmask8 differ = _mm256_mask_cmpgt_epu32_mask(here, together(stamps_of),
                                                         _mm256_set1_epi32(static_cast<int>(look.since)));
    return {here, differ, _mm256_sub_epi32(slots, _mm256_set1_epi32(1))};
}

// rest: room for kEight more than there are keys.
PERSIA_WIDE inline std::size_t look_in_homes(const KeyIndex::HomeLines& homes, const BucketOf& bucket_of,
                                             std::uint32_t first_bucket, const SecondLook& look,
                                             const Keys keys, const Span<std::uint32_t> slots,
                                             const Span<std::uint8_t> differs, std::uint32_t* const rest) {
    constexpr std::size_t kMatch = 4, kBlocks = 8;
    Eight blocks[kBlocks];
    const std::size_t n = keys.size(), num_blocks = (n + kEight - 1) / kEight;
    std::size_t num_rest = 0;
    for (std::size_t ahead = 0; ahead < num_blocks + kMatch; ++ahead) {
        const auto size = [n](std::size_t block) { return std::min(kEight, n - block * kEight); };
        if (ahead < num_blocks) {
            Eight& of = blocks[ahead % kBlocks];
            take_keys(of, &keys[ahead * kEight], size(ahead));
            find_lines<false>(of, homes, bucket_of.shift(), first_bucket);
            prefetch_lines_of(of);
        }
        const std::size_t to_match = ahead - kMatch;  // below 0: huge
        if (to_match >= num_blocks) continue;
        const std::size_t begin = to_match * kEight;
        const auto all = static_cast<__mmask8>((1u << size(to_match)) - 1);
        const __m256i before = _mm256_maskz_loadu_epi32(all, &slots[begin]);
        const auto most = _mm256_set1_epi32(static_cast<int>(look.most));
        const Taken taken =
            take_entries(blocks[to_match % kBlocks], look, _mm256_mask_cmple_epu32_mask(all, before, most));
        _mm256_mask_storeu_epi32(&slots[begin], taken.here, taken.slots);
        _mm_mask_storeu_epi8(&differs[begin], taken.differ, _mm_set1_epi8(1));
        num_rest += list_bits(static_cast<unsigned>(all & ~taken.here), begin, rest + num_rest);
    }
    return num_rest;
}

// Takes those of `rest` that are in their second lines off it; returns how many are left.
PERSIA_WIDE inline std::size_t look_in_seconds(const KeyIndex::HomeLines& homes, const BucketOf& bucket_of,
                                               std::uint32_t first_bucket, const SecondLook& look,
                                               const Keys keys, const Span<std::uint32_t> slots,
                                               const Span<std::uint8_t> differs, std::uint32_t* const rest,
                                               const std::size_t n) {
    constexpr std::size_t kMatch = 2, kBlocks = 4;
    Eight blocks[kBlocks];
    const std::size_t num_blocks = (n + kEight - 1) / kEight;
    std::size_t num_left = 0;
    for (std::size_t ahead = 0; ahead < num_blocks + kMatch; ++ahead) {
        if (ahead < num_blocks) {
            Eight& of = blocks[ahead % kBlocks];
            for (std::size_t i = 0; i < kEight; ++i)
                of.keys[i] = keys[rest[std::min(ahead * kEight + i, n - 1)]];
            find_lines<true>(of, homes, bucket_of.shift(), first_bucket);
            prefetch_lines_of(of);
        }
        const std::size_t to_match = ahead - kMatch;  // below 0: huge
        if (to_match >= num_blocks) continue;
        const std::size_t begin = to_match * kEight, size = std::min(kEight, n - begin);
        const auto all = static_cast<__mmask8>((1u << size) - 1);
        unsigned some = 0;
        for (std::size_t i = 0; i < size; ++i) {
            some |= static_cast<unsigned>(slots[rest[begin + i]] <= look.most) << i;
        }
        const Taken taken = take_entries(blocks[to_match % kBlocks], look, some);
        alignas(32) std::uint32_t found[kEight];
        _mm256_store_si256(reinterpret_cast<__m256i*>(found), taken.slots);
        for (unsigned bits = taken.here; bits != 0; bits &= bits - 1) {
            const auto i = static_cast<unsigned>(__builtin_ctz(bits));
            slots[rest[begin + i]] = found[i];
            differs[rest[begin + i]] |= static_cast<std::uint8_t>(taken.differ >> i & 1);
        }
        // Over places that have been read: no more are left than have been looked at.
        const __m256i places = _mm256_maskz_loadu_epi32(all, rest + begin);
        const auto left = static_cast<__mmask8>(all & ~taken.here);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest + num_left),
                            _mm256_maskz_compress_epi32(left, places));
        num_left += static_cast<std::size_t>(__builtin_popcount(left));
    }
    return num_left;
}

#endif

}  // namespace persia
