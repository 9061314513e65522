// Where eight keys are and where their rows lie, with AVX-512, in a build for any x86-64: it is the processor
// that is asked. The results are those of the walk's code for one key (shard_pull.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "persia/key_index.h"
#include "persia/prefetch.h"
#include "persia/row_store.h"
#include "persia/wide.h"

#ifdef PERSIA_WIDE
#include <immintrin.h>
#endif

namespace persia {

constexpr std::size_t kEight = 8;

// What a walk does to the stamp of a row that it finds, where no more than this is to be done.
struct LeaveStamp {
    std::uint32_t operator()(Key, const IndexLine&, unsigned, std::uint32_t here) const { return here; }
};
struct RaiseStamp {
    std::uint32_t step;

    std::uint32_t operator()(Key, IndexLine& line, unsigned at, std::uint32_t here) const {
        const std::uint32_t older = line.stamps[at];
        line.stamps[at] = older + ((step > older ? step - older : 0) & here);
        return here;
    }
};

template <class Touch>
constexpr bool kWideTouch = std::is_same_v<Touch, LeaveStamp> || std::is_same_v<Touch, RaiseStamp>;

#ifdef PERSIA_WIDE
struct Eight {
    Key keys[kEight];
    IndexLine* lines[kEight];
    std::uint32_t slots[kEight];  // kNoSlot: not in that line
    const std::byte* rows[kEight];
};

// The numbers at eight places. Not a gather: that is no faster on Zen 4, and slow where processors must keep
// it from leaking what it reads.
PERSIA_WIDE inline __m512i load_eight(const void* from, __m512i places) {
    using Number = long long __attribute__((may_alias));
    alignas(64) std::uint64_t at[kEight];
    _mm512_store_si512(at, places);
    const auto* const of = static_cast<const Number*>(from);
    return _mm512_set_epi64(of[at[7]], of[at[6]], of[at[5]], of[at[4]], of[at[3]], of[at[2]], of[at[1]],
                            of[at[0]]);
}

// Takes `count` keys, at most eight, and again the last of them.
PERSIA_WIDE inline void take_keys(Eight& of, const Key* keys, std::size_t count) {
    const auto some = static_cast<__mmask8>((1u << count) - 1);
    const __m512i last = _mm512_set1_epi64(static_cast<long long>(keys[count - 1]));
    _mm512_storeu_si512(of.keys, _mm512_mask_loadu_epi64(last, some, keys));
}

PERSIA_WIDE inline void put_slots(const Eight& of, std::uint32_t* slots, std::size_t count) {
    const auto some = static_cast<__mmask8>((1u << count) - 1);
    _mm256_mask_storeu_epi32(slots, some, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(of.slots)));
}

PERSIA_WIDE inline __m512i high_of_products(__m512i a, __m512i b) {  // of their low 32 bits
    return _mm512_srli_epi64(_mm512_mul_epu32(a, b), 32);
}

// Finds the home lines of the keys, or their second lines, as KeyIndex does.
template <bool kSecond>
PERSIA_WIDE void find_lines(Eight& of, const KeyIndex::HomeLines& homes, unsigned bucket_shift,
                            std::uint32_t first_bucket) {
    const __m512i keys = _mm512_loadu_si512(of.keys);
    const __m512i shifted =
        _mm512_srl_epi64(_mm512_srli_epi64(keys, 1), _mm_cvtsi32_si128(static_cast<int>(bucket_shift)));
    const __m512i buckets = _mm512_sub_epi64(shifted, _mm512_set1_epi64(first_bucket));
    // A bucket's number of lines, and above it what products don't see.
    const __m512i counts = load_eight(homes.buckets, buckets);
    __m512i j = high_of_products(keys, counts);
    if (kSecond) {
        const __m512i num_lines = _mm512_and_si512(counts, _mm512_set1_epi64(UINT32_MAX));
        const __m512i one = _mm512_set1_epi64(1);
        const __m512i hash =
            _mm512_mul_epu32(_mm512_srli_epi64(keys, 32), _mm512_set1_epi64(KeyIndex::kSecondHash));
        j = _mm512_add_epi64(_mm512_add_epi64(j, one),
                             high_of_products(hash, _mm512_sub_epi64(num_lines, one)));
        j = _mm512_mask_sub_epi64(j, _mm512_cmpge_epu64_mask(j, num_lines), j, num_lines);
    }
    const __m512i number = _mm512_add_epi64(_mm512_mul_epu32(j, _mm512_set1_epi64(homes.stride)), buckets);
    const __m128i log2_chunk = _mm_cvtsi32_si128(static_cast<int>(homes.log2_chunk_lines));
    const __m512i chunks = load_eight(homes.chunks, _mm512_srl_epi64(number, log2_chunk));
    const __m512i in_chunk =
        _mm512_and_si512(number, _mm512_set1_epi64((std::int64_t{1} << homes.log2_chunk_lines) - 1));
    _mm512_storeu_si512(of.lines, _mm512_add_epi64(chunks, _mm512_slli_epi64(in_chunk, 6)));
}

PERSIA_WIDE inline __m128i first_of_each(__m128i a, __m128i b, __m128i c, __m128i d) {
    return _mm_unpacklo_epi64(_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
}

// Finds the slots of the keys in these lines, and their rows; slot 0's for those that aren't there. Returns
// these as bits.
template <class Touch>
PERSIA_WIDE unsigned find_slots(Eight& of, const Touch& touch, const RowStore::Weights& weights) {
    __m128i found[kEight];  // slot + 1, or 0, in the first element
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kEight; ++i) {
        IndexLine& line = *of.lines[i];
        const __m128i slots = _mm_load_si128(reinterpret_cast<const __m128i*>(line.slots));
        const __mmask8 equal =
            _mm256_cmpeq_epi64_mask(_mm256_load_si256(reinterpret_cast<const __m256i*>(line.keys)),
                                    _mm256_set1_epi64x(static_cast<long long>(of.keys[i])));
        const __mmask8 here = _mm_mask_test_epi32_mask(equal, slots, slots);
        found[i] = _mm_maskz_compress_epi32(here, slots);
        if constexpr (std::is_same_v<Touch, RaiseStamp>) {
            auto* const stamps = reinterpret_cast<__m128i*>(line.stamps);
            const __m128i older = _mm_load_si128(stamps);
            const __m128i step = _mm_set1_epi32(static_cast<int>(touch.step));
            _mm_store_si128(stamps, _mm_mask_max_epu32(older, here, older, step));
        }
    }
    const __m256i all =
        _mm256_inserti128_si256(_mm256_castsi128_si256(first_of_each(found[0], found[1], found[2], found[3])),
                                first_of_each(found[4], found[5], found[6], found[7]), 1);
    const __mmask8 here = _mm256_test_epi32_mask(all, all);
    const __m256i slots = _mm256_sub_epi32(all, _mm256_set1_epi32(1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(of.slots), slots);
    const __m256i at = _mm256_maskz_mov_epi32(here, slots);
    const __m256i chunk = _mm256_srl_epi32(at, _mm_cvtsi32_si128(static_cast<int>(weights.log2_chunk_rows)));
    // A chunk is three pointers, of which the first is wanted.
    const __m512i chunks = load_eight(
        weights.chunks, _mm512_cvtepu32_epi64(_mm256_add_epi32(chunk, _mm256_slli_epi32(chunk, 1))));
    const __m512i in_chunk =
        _mm512_cvtepu32_epi64(_mm256_and_si256(at, _mm256_set1_epi32(static_cast<int>(weights.chunk_mask))));
    const __m512i bytes = _mm512_set1_epi64(static_cast<long long>(weights.bytes));
    _mm512_storeu_si512(of.rows, _mm512_add_epi64(chunks, _mm512_mul_epu32(in_chunk, bytes)));
    return static_cast<std::uint8_t>(~here);
}

// Writes first + i for each bit i, and whatever there is up to eight numbers; returns how many bits.
PERSIA_WIDE inline std::size_t list_bits(unsigned bits, std::size_t first, std::uint32_t* to) {
    const __m256i numbers = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first)),
                                             _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm256_maskz_compress_epi32(static_cast<__mmask8>(bits), numbers));
    return static_cast<std::size_t>(__builtin_popcount(bits));
}
// Prefetches stand alone: where address translations miss, each waits for its own and keeps what comes after
// it from retiring, so only those close together are under way at a time.
inline void prefetch_lines_of(const Eight& of) {
    for (IndexLine* const line : of.lines) prefetch_cold_line(line);
}
inline void prefetch_rows_of(const Eight& of, std::size_t row_lines) {
    for (const std::byte* const row : of.rows) prefetch_cold_lines(row, row_lines);
}
#endif

}  // namespace persia
