// Dedup of some hundred ids of one feature with AVX-512, by sorting: the start of a key and the number of its
// id make one number of 32 bits, so that a key's ids come to lie side by side, by bucket. The results are
// those of the code for any number of ids (dedup.cpp).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "persia/key.h"
#include "persia/prefetch.h"
#include "persia/span.h"
#include "sort_wide.h"

#ifdef PERSIA_WIDE

namespace persia {

struct SortedIds {
    static constexpr unsigned kNumberBits = 9;
    static constexpr std::size_t kMost = std::size_t{1} << kNumberBits;
    static constexpr std::uint32_t kNumber = kMost - 1;
    static constexpr std::size_t kPadding = 16;  // one register more may be read and written
    static_assert(kMost == 2 * kBlockNumbers);

    alignas(64) std::uint32_t room[kPadding + kMost + kPadding];
    alignas(64) std::uint32_t mixed[kMost + kPadding];  // unsorted
    alignas(64) Key keys[kMost + kPadding];             // [n] in the order of ids
    alignas(64) Key sorted_room[kPadding + kMost + kPadding];
    alignas(64) std::uint32_t firsts[kMost + kPadding];  // [U] of those ids the first
    alignas(64) std::uint32_t rows[kMost + kPadding];    // [n] the key's row
    std::uint16_t begins[kMost / 16 + 1];                // a bit for each id: a key's first
    std::uint32_t first_position;                        // of the table
    std::uint32_t* starts;                               // [U+1] of a key's ids in `ids`, plus first_position

    std::uint32_t* ids() { return room + kPadding; }  // [n] the key's first 23 bits, and the id's number
    Key* sorted_keys() { return sorted_room + kPadding; }
};

PERSIA_WIDE_INLINE __m512i count_from(std::uint32_t first) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), lanes);
}
PERSIA_WIDE_INLINE __mmask16 first_lanes(std::size_t count) {
    return count >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << count) - 1);
}

PERSIA_WIDE inline void mix_and_sort(Span<const Id> ids, SortedIds& of) {
    const std::size_t n = ids.size();
    const __m512i first = _mm512_set1_epi64(static_cast<long long>(0xbf58476d1ce4e5b9u));
    const __m512i second = _mm512_set1_epi64(static_cast<long long>(0x94d049bb133111ebu));
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (std::size_t i = 0; i < n; i += 8) {
        __m512i x = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(first_lanes(n - i)), &ids[i]);
        x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 30)), first);
        x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 27)), second);
        x = _mm512_xor_si512(x, _mm512_srli_epi64(x, 31));
        _mm512_store_si512(of.keys + i, x);
        const __m256i high = _mm512_cvtepi64_epi32(_mm512_srli_epi64(x, 32));
        const __m256i numbers = _mm256_add_epi32(lanes, _mm256_set1_epi32(static_cast<int>(i)));
        _mm256_store_si256(
            reinterpret_cast<__m256i*>(of.mixed + i),
            _mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi32(SortedIds::kNumber), high), numbers));
    }
    const std::size_t end = n <= kBlockNumbers ? kBlockNumbers : 2 * kBlockNumbers;
    for (std::size_t i = n; i < end; i += 16)  // what is behind all ids
        _mm512_storeu_si512(of.mixed + i, _mm512_set1_epi32(-1));
    if (n <= kBlockNumbers) {
        sort_one_block(of.mixed, of.ids());
    } else {
        sort_two_blocks(of.mixed, of.ids());
    }
}

// Finds where keys begin, as far as their first bits tell, and writes that behind row_offsets[0], which is
// there; returns how many there are.
PERSIA_WIDE inline std::uint32_t find_starts(SortedIds& of, std::uint32_t n, std::uint32_t* row_offsets) {
    of.starts = row_offsets;
    of.first_position = row_offsets[0];
    std::uint32_t* const ids = of.ids();
    const __m512i key_bits = _mm512_set1_epi32(static_cast<int>(~SortedIds::kNumber));
    ids[-1] = ~ids[0];
    std::uint32_t count = 0;
    for (std::uint32_t j = 0; j < n; j += 16) {
        const __m512i here = _mm512_load_si512(ids + j), before = _mm512_loadu_si512(ids + j - 1);
        const __mmask16 begin =
            _mm512_mask_test_epi32_mask(first_lanes(n - j), _mm512_xor_si512(here, before), key_bits);
        _mm512_storeu_si512(of.starts + count,
                            _mm512_maskz_compress_epi32(begin, count_from(of.first_position + j)));
        _mm512_storeu_si512(of.firsts + count, _mm512_maskz_compress_epi32(begin, here));
        count += static_cast<std::uint32_t>(__builtin_popcount(begin));
    }
    of.starts[count] = of.first_position + n;
    return count;
}

PERSIA_WIDE_INLINE std::uint32_t count_less(__m512i some, __m512i than) {
    return static_cast<std::uint32_t>(__builtin_popcount(_mm512_cmplt_epu32_mask(some, than)));
}

// Finds where each server's rows begin, and where the last one's end: how many keys are of buckets below its
// bound.
PERSIA_WIDE inline void find_servers(SortedIds& of, std::uint32_t count, unsigned bucket_bits,
                                     Span<const std::uint32_t> bounds, std::uint32_t first_row,
                                     std::uint32_t* servers) {
    const __m512i none = _mm512_set1_epi32(-1);
    _mm512_storeu_si512(of.firsts + count, none);
    alignas(64) std::uint32_t lasts[SortedIds::kMost / 16];  // of sixteen keys each
    _mm512_store_si512(lasts, none);
    _mm512_store_si512(lasts + 16, none);
    for (std::uint32_t i = 0; i < count / 16; ++i) lasts[i] = of.firsts[16 * i + 15];
    const __m512i some = _mm512_load_si512(lasts), others = _mm512_load_si512(lasts + 16);
    for (std::size_t p = 0; p < bounds.size(); ++p) {
        const std::uint64_t bound = std::uint64_t{bounds[p]} << (32 - bucket_bits);
        const __m512i than = _mm512_set1_epi32(static_cast<int>(bound));
        const std::uint32_t whole = count_less(some, than) + count_less(others, than);
        const std::uint32_t below = 16 * whole + count_less(_mm512_loadu_si512(of.firsts + 16 * whole), than);
        servers[p] = first_row + (bound >> 32 == 0 ? below : count);
    }
}

// Puts a key's ids before those of the key before.
PERSIA_WIDE inline void swap_keys(SortedIds& of, std::uint32_t key) {
    const std::uint32_t before = of.starts[key] - of.starts[key - 1];
    const std::uint32_t here = of.starts[key + 1] - of.starts[key];
    std::uint32_t* const to = of.ids() + (of.starts[key - 1] - of.first_position);
    std::swap(of.firsts[key - 1], of.firsts[key]);
    of.starts[key] = of.starts[key - 1] + here;
    if (before + here == 2) {
        std::swap(to[0], to[1]);
    } else if (before <= 16 && here <= 16) {
        const __m512i left = _mm512_loadu_si512(to), right = _mm512_loadu_si512(to + before);
        _mm512_mask_storeu_epi32(to, first_lanes(here), right);
        _mm512_mask_storeu_epi32(to + here, first_lanes(before), left);
    } else {
        std::rotate(to, to + before, to + before + here);
    }
}

// Puts the keys of each bucket in the order of their first ids. Returns false if those are too many.
PERSIA_WIDE inline bool order_buckets(SortedIds& of, std::uint32_t count, unsigned bucket_bits) {
    const std::uint32_t bucket = bucket_bits == 0 ? 0 : ~std::uint32_t{0} << (32 - bucket_bits);
    const auto wrong = [&](std::uint32_t key) {
        const std::uint32_t here = of.firsts[key], before = of.firsts[key - 1];
        return ((here ^ before) & bucket) == 0 && (here & SortedIds::kNumber) < (before & SortedIds::kNumber);
    };
    const __m512i number = _mm512_set1_epi32(SortedIds::kNumber);
    const __m512i bits = _mm512_set1_epi32(static_cast<int>(bucket));
    // All of them before any is moved: a vector is late where parts of it were written just now.
    std::uint64_t words[SortedIds::kMost / 64 + 1] = {};
    for (std::uint32_t u = 1; u < count; u += 16) {
        const __m512i here = _mm512_loadu_si512(of.firsts + u),
                      before = _mm512_loadu_si512(of.firsts + u - 1);
        const __mmask16 same =
            _mm512_mask_testn_epi32_mask(first_lanes(count - u), _mm512_xor_si512(here, before), bits);
        const std::uint64_t some = _mm512_mask_cmplt_epu32_mask(same, _mm512_and_si512(here, number),
                                                                _mm512_and_si512(before, number));
        words[u / 64] |= some << (u / 16 * 16 % 64);
    }
    std::size_t left = SortedIds::kMost;
    for (std::uint32_t word = 0; word * 64 < count; ++word) {
        for (std::uint64_t some = words[word]; some != 0; some &= some - 1) {
            std::uint32_t key = word * 64 + 1 + static_cast<std::uint32_t>(__builtin_ctzll(some));
            do {  // and what comes after them, which had another before
                for (std::uint32_t at = key; at > 0 && wrong(at); --at) {
                    if (left-- == 0) return false;
                    swap_keys(of, at);
                }
                ++key;
            } while (key < count && wrong(key));
        }
    }
    return true;
}

// Lists the rows of ids, and each row's ids.
PERSIA_WIDE inline void write_positions(SortedIds& of, std::uint32_t n, std::uint32_t first_row,
                                        std::uint32_t first_id, std::uint32_t* positions) {
    std::uint32_t* const ids = of.ids();
    const __m512i number = _mm512_set1_epi32(SortedIds::kNumber), one = _mm512_set1_epi32(1);
    const __m512i zero = _mm512_setzero_si512();
    std::uint32_t count = 0;
    for (std::uint32_t j = 0; j < n; j += 16) {
        const __m512i here = _mm512_load_si512(ids + j), before = _mm512_loadu_si512(ids + j - 1);
        const __mmask16 some = first_lanes(n - j);
        const __mmask16 begin = _mm512_mask_test_epi32_mask(
            some, _mm512_xor_si512(here, before), _mm512_andnot_si512(number, _mm512_set1_epi32(-1)));
        of.begins[j / 16] = begin;
        __m512i sums = _mm512_maskz_mov_epi32(begin, one);
        sums = _mm512_add_epi32(sums, _mm512_alignr_epi32(sums, zero, 15));
        sums = _mm512_add_epi32(sums, _mm512_alignr_epi32(sums, zero, 14));
        sums = _mm512_add_epi32(sums, _mm512_alignr_epi32(sums, zero, 12));
        sums = _mm512_add_epi32(sums, _mm512_alignr_epi32(sums, zero, 8));
        _mm512_store_si512(
            of.rows + j, _mm512_add_epi32(sums, _mm512_set1_epi32(static_cast<int>(first_row + count - 1))));
        _mm512_mask_storeu_epi32(
            positions + j, some,
            _mm512_add_epi32(_mm512_and_si512(here, number), _mm512_set1_epi32(static_cast<int>(first_id))));
        count += static_cast<std::uint32_t>(__builtin_popcount(begin));
    }
}

// Also asks for the ids of the next table.
template <typename Index>
inline void write_indices(SortedIds& of, std::uint32_t n, Index* indices, Span<const Id> next) {
    const std::uint32_t* const ids = of.ids();
    Key* const sorted = of.sorted_keys();
    const auto write = [&](std::uint32_t j) {
        const std::uint32_t i = ids[j] & SortedIds::kNumber;
        sorted[j] = of.keys[i];
        indices[i] = static_cast<Index>(of.rows[j]);
    };
    std::uint32_t j = 0;
    for (; j + 8 <= n; j += 8) {
        if (j < next.size()) prefetch_cold_line(&next[j]);
#pragma GCC unroll 8
        for (std::uint32_t k = 0; k < 8; ++k) write(j + k);
    }
    for (; j < n; ++j) write(j);
}

// Lists the keys; returns false if two of them have the same first bits.
PERSIA_WIDE inline bool list_keys(SortedIds& of, std::uint32_t n, Key* keys) {
    Key* const sorted = of.sorted_keys();
    sorted[-1] = ~sorted[0];
    unsigned wrong = 0;
    for (std::uint32_t j = 0; j < n; j += 8) {
        const __m512i here = _mm512_load_si512(sorted + j), before = _mm512_loadu_si512(sorted + j - 1);
        const auto begin = static_cast<__mmask8>(of.begins[j / 16] >> j % 16);
        const auto some = static_cast<__mmask8>(first_lanes(n - j));
        wrong |= static_cast<unsigned>(_mm512_mask_cmpneq_epi64_mask(some, here, before) ^ begin);
        _mm512_storeu_si512(keys, _mm512_maskz_compress_epi64(begin, here));
        keys += __builtin_popcount(begin);
    }
    return wrong == 0;
}

}  // namespace persia
#endif
