// Loops of dedup that depend on what the processor can do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#ifdef __SSSE3__
#include <immintrin.h>
#endif

#include "persia/key.h"
#include "persia/span.h"
#include "persia/wide.h"

namespace persia {

// A condition that the compiler must compute: of a comparison it would make a branch that can't be predicted.
inline std::uint32_t opaque(std::uint32_t condition) {
    __asm__("" : "+r"(condition));
    return condition;
}

template <typename Small>
inline __attribute__((always_inline)) void mix_each(Span<const Id> ids, std::size_t mask, Key* keys,
                                                    Small* homes) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
        keys[i] = mix(ids[i]);
        homes[i] = static_cast<Small>(keys[i] & mask);
    }
}

// The key of each id, and its low bits. Products of 64 bits are one instruction for eight of them with
// AVX-512, without it there is none.
#ifdef PERSIA_WIDE
template <typename Small>
PERSIA_WIDE void mix_wide(Span<const Id> ids, std::size_t mask, Key* keys, Small* homes) {
    mix_each(ids, mask, keys, homes);
}
#endif

template <typename Small>
void mix_ids(Span<const Id> ids, std::size_t mask, Key* keys, Small* homes) {
#ifdef PERSIA_WIDE
    if (use_wide) return mix_wide(ids, mask, keys, homes);
#endif
    mix_each(ids, mask, keys, homes);
}

constexpr std::size_t kSumPadding = 8;

// Turns counts [size + 1], of which the last is 0, into the sums of those before each. May also write to the
// kSumPadding - 1 elements behind.
template <typename Counter>
void add_up(Counter* counts, std::size_t size) {
    Counter sum = 0;
    for (std::size_t i = 0; i <= size; ++i) sum = static_cast<Counter>(sum + std::exchange(counts[i], sum));
}

#ifdef __SSSE3__
template <>
inline void add_up(std::uint16_t* counts, std::size_t size) {
    const __m128i last = _mm_set1_epi16(0x0f0e);  // the bytes of the last of eight, for each of them
    __m128i before = _mm_setzero_si128();         // in each part the sum of all counts before these eight
    for (std::size_t i = 0; i <= size; i += 8) {
        auto* const eight = reinterpret_cast<__m128i*>(counts + i);
        __m128i sums = _mm_loadu_si128(eight);
        sums = _mm_add_epi16(sums, _mm_slli_si128(sums, 2));
        sums = _mm_add_epi16(sums, _mm_slli_si128(sums, 4));
        sums = _mm_add_epi16(sums, _mm_slli_si128(sums, 8));
        _mm_storeu_si128(eight, _mm_add_epi16(before, _mm_slli_si128(sums, 2)));
        before = _mm_add_epi16(before, _mm_shuffle_epi8(sums, last));
    }
}
#endif

}  // namespace persia
