// Sorts some hundred numbers of 32 bits with AVX-512, by networks of exchanges: no branch depends on them.
//
// A block is 256 numbers in sixteen rows (registers) of sixteen columns (lanes). It is in order if its
// columns are, one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "persia/wide.h"

#ifdef PERSIA_WIDE
#include <immintrin.h>

#define PERSIA_WIDE_INLINE PERSIA_WIDE inline __attribute__((always_inline))

namespace persia {

constexpr std::size_t kBlockRows = 16, kBlockNumbers = 256;
using AllRows = std::make_index_sequence<kBlockRows>;
using HalfOfRows = std::make_index_sequence<kBlockRows / 2>;

PERSIA_WIDE_INLINE void exchange(__m512i& low, __m512i& high) {
    const __m512i less = _mm512_min_epu32(low, high);
    high = _mm512_max_epu32(low, high);
    low = less;
}

// Batcher's merge exchange.
struct Exchanges {
    static constexpr std::size_t kCount = 63;
    std::uint8_t low[kCount] = {}, high[kCount] = {};

    constexpr Exchanges() {
        std::size_t count = 0;
        for (std::size_t part = 1; part < kBlockRows; part *= 2) {
            for (std::size_t apart = part; apart > 0; apart /= 2) {
                for (std::size_t i = apart % part; i + apart < kBlockRows; i += 2 * apart) {
                    for (std::size_t j = i; j < i + apart && j + apart < kBlockRows; ++j) {
                        if (j / (2 * part) != (j + apart) / (2 * part)) continue;
                        low[count] = static_cast<std::uint8_t>(j);
                        high[count++] = static_cast<std::uint8_t>(j + apart);
                    }
                }
            }
        }
    }
};
inline constexpr Exchanges kExchanges;

template <std::size_t... I>
PERSIA_WIDE_INLINE void sort_columns(__m512i* rows, std::index_sequence<I...>) {
    (exchange(rows[kExchanges.low[I]], rows[kExchanges.high[I]]), ...);
}

// Lanes with this bit in their number.
constexpr std::uint16_t lanes_with(std::size_t bit) {
    std::uint16_t lanes = 0;
    for (std::size_t lane = 0; lane < 16; ++lane) {
        if ((lane & bit) != 0) lanes = static_cast<std::uint16_t>(lanes | 1u << lane);
    }
    return lanes;
}

// Each lane gets what is in the lane whose number differs in these bits.
template <std::size_t kBits>
PERSIA_WIDE_INLINE __m512i crossed(__m512i row) {
    if constexpr (kBits == 1) {
        return _mm512_shuffle_epi32(row, _MM_PERM_CDAB);
    } else if constexpr (kBits == 2) {
        return _mm512_shuffle_epi32(row, _MM_PERM_BADC);
    } else if constexpr (kBits == 3) {
        return _mm512_shuffle_epi32(row, _MM_PERM_ABCD);
    } else if constexpr (kBits == 4) {
        return _mm512_shuffle_i32x4(row, row, 0xb1);
    } else if constexpr (kBits == 8) {
        return _mm512_shuffle_i32x4(row, row, 0x4e);
    } else {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return _mm512_permutexvar_epi32(_mm512_xor_si512(lanes, _mm512_set1_epi32(kBits)), row);
    }
}

// One half of a sequence that rises and falls gets what is less; both then rise and fall.
template <std::size_t kApart>
PERSIA_WIDE_INLINE __m512i halved(__m512i row) {
    const __m512i other = crossed<kApart>(row);
    return _mm512_mask_max_epu32(_mm512_min_epu32(row, other), lanes_with(kApart), row, other);
}
template <std::size_t kApart, std::size_t... I>
PERSIA_WIDE_INLINE void halve_columns(__m512i* rows, std::index_sequence<I...>) {
    ((rows[I] = halved<kApart>(rows[I])), ...);
}
template <std::size_t kApart, std::size_t... I>
PERSIA_WIDE_INLINE void halve_rows(__m512i* rows, std::index_sequence<I...>) {
    (exchange(rows[I / kApart * 2 * kApart + I % kApart],
              rows[I / kApart * 2 * kApart + I % kApart + kApart]),
     ...);
}
// Sorts sequences that rise and fall, of kColumns columns each.
template <std::size_t kColumns>
PERSIA_WIDE_INLINE void finish(__m512i* rows) {
    if constexpr (kColumns > 8) halve_columns<8>(rows, AllRows());
    if constexpr (kColumns > 4) halve_columns<4>(rows, AllRows());
    if constexpr (kColumns > 2) halve_columns<2>(rows, AllRows());
    if constexpr (kColumns > 1) halve_columns<1>(rows, AllRows());
    halve_rows<8>(rows, HalfOfRows());
    halve_rows<4>(rows, HalfOfRows());
    halve_rows<2>(rows, HalfOfRows());
    halve_rows<1>(rows, HalfOfRows());
}

// Merges neighbours of kColumns columns each: what is less of each number and its mirror goes to the first.
template <std::size_t kColumns>
PERSIA_WIDE_INLINE void exchange_mirrored(__m512i& row, __m512i& last) {
    const __m512i other = crossed<2 * kColumns - 1>(last);
    const __m512i less = _mm512_min_epu32(row, other), more = _mm512_max_epu32(row, other);
    row = _mm512_mask_mov_epi32(less, lanes_with(kColumns), more);
    last = crossed<2 * kColumns - 1>(_mm512_mask_mov_epi32(more, lanes_with(kColumns), less));
}
template <std::size_t kColumns, std::size_t... I>
PERSIA_WIDE_INLINE void mirror(__m512i* rows, std::index_sequence<I...>) {
    (exchange_mirrored<kColumns>(rows[I], rows[kBlockRows - 1 - I]), ...);
}
template <std::size_t kColumns>
PERSIA_WIDE_INLINE void merge_columns(__m512i* rows) {
    mirror<kColumns>(rows, HalfOfRows());
    finish<kColumns>(rows);
}

template <std::size_t... I>
PERSIA_WIDE_INLINE void load_rows(__m512i* rows, const std::uint32_t* from, std::index_sequence<I...>) {
    ((rows[I] = _mm512_load_si512(from + I * 16)), ...);
}
template <std::size_t... I>
PERSIA_WIDE_INLINE void store_rows(const __m512i* rows, std::uint32_t* to, std::index_sequence<I...>) {
    (_mm512_store_si512(to + I * 16, rows[I]), ...);
}

PERSIA_WIDE_INLINE void turn_four(const __m512i* rows, __m512i* turned) {
    const __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]), b = _mm512_unpackhi_epi32(rows[0], rows[1]);
    const __m512i c = _mm512_unpacklo_epi32(rows[2], rows[3]), d = _mm512_unpackhi_epi32(rows[2], rows[3]);
    turned[0] = _mm512_unpacklo_epi64(a, c);
    turned[1] = _mm512_unpackhi_epi64(a, c);
    turned[2] = _mm512_unpacklo_epi64(b, d);
    turned[3] = _mm512_unpackhi_epi64(b, d);
}
PERSIA_WIDE_INLINE void store_four(const __m512i* turned, std::uint32_t* to) {
    const __m512i a = _mm512_shuffle_i32x4(turned[0], turned[4], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(turned[0], turned[4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(turned[8], turned[12], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(turned[8], turned[12], 0xdd);
    _mm512_store_si512(to, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_store_si512(to + 4 * 16, _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_store_si512(to + 8 * 16, _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_store_si512(to + 12 * 16, _mm512_shuffle_i32x4(b, d, 0xdd));
}
// Stores columns one after the other.
PERSIA_WIDE_INLINE void store_columns(const __m512i* rows, std::uint32_t* to) {
    __m512i turned[kBlockRows];
    turn_four(rows, turned);
    turn_four(rows + 4, turned + 4);
    turn_four(rows + 8, turned + 8);
    turn_four(rows + 12, turned + 12);
    store_four(turned, to);
    store_four(turned + 1, to + 16);
    store_four(turned + 2, to + 32);
    store_four(turned + 3, to + 48);
}

PERSIA_WIDE_INLINE void sort_rows(__m512i* rows) {
    sort_columns(rows, std::make_index_sequence<Exchanges::kCount>());
    merge_columns<1>(rows);
    merge_columns<2>(rows);
    merge_columns<4>(rows);
    merge_columns<8>(rows);
}

// Puts a block's numbers in order.
PERSIA_WIDE inline void sort_one_block(const std::uint32_t* from, std::uint32_t* to) {
    __m512i rows[kBlockRows];
    load_rows(rows, from, AllRows());
    sort_rows(rows);
    store_columns(rows, to);
}

template <std::size_t... I>
PERSIA_WIDE_INLINE void mirror_block(std::uint32_t* block, __m512i* rows, std::index_sequence<I...>) {
    __m512i mirrored[kBlockRows];
    ((mirrored[I] = crossed<15>(rows[kBlockRows - 1 - I])), ...);
    ((rows[I] = _mm512_max_epu32(_mm512_load_si512(block + I * 16), mirrored[I])), ...);
    (_mm512_store_si512(block + I * 16, _mm512_min_epu32(_mm512_load_si512(block + I * 16), mirrored[I])),
     ...);
}

// The same for two blocks. Overwrites `from`.
PERSIA_WIDE inline void sort_two_blocks(std::uint32_t* from, std::uint32_t* to) {
    __m512i rows[kBlockRows];
    load_rows(rows, from, AllRows());
    sort_rows(rows);
    store_rows(rows, from, AllRows());
    load_rows(rows, from + kBlockNumbers, AllRows());
    sort_rows(rows);
    mirror_block(from, rows, AllRows());
    finish<16>(rows);
    store_columns(rows, to + kBlockNumbers);
    load_rows(rows, from, AllRows());
    finish<16>(rows);
    store_columns(rows, to);
}

}  // namespace persia
#endif
