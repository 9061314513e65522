// key -> (slot, stamp) for the buckets of one table shard.
//
// Each bucket is a cuckoo hash table of its own (Dietzfelbinger and Weidling, 2007), of cache lines with four
// entries each: a key is in one of two lines, in the first if that had room. So a look-up touches one line of
// the index, or two, and never a row: lines hold whole keys, and the stamps too, so that recency and eviction
// don't touch rows either.
//
// The lines of all buckets interleave in memory: line j of every bucket lies in the j-th run of num_buckets
// lines (one more where there are many: lines a power of two apart would share a few sets of the cache).
// Buckets hold nearly equal numbers of keys (the bucket is a hash), so the memory in use is a compact prefix,
// a bucket grows in place, one at a time and by a fraction, and nothing is ever outgrown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "persia/arena.h"
#include "persia/key.h"
#include "persia/prefetch.h"

namespace persia {

inline constexpr std::uint32_t kNoSlot = UINT32_MAX;

struct alignas(64) IndexLine {  // entries are filled from the front
    static constexpr unsigned kEntries = 4;

    Key keys[kEntries];
    std::uint32_t slots[kEntries];   // slot + 1; 0: empty
    std::uint32_t stamps[kEntries];  // what eviction orders by, see eviction.h

    bool full() const { return slots[kEntries - 1] != 0; }
    unsigned size() const {  // without a branch that depends on it
        unsigned count = 0;
        for (unsigned i = 0; i < kEntries; ++i) count += slots[i] != 0;
        return count;
    }

    // Bit i: keys[i] == key. Also set for empty entries if the key is 0.
    unsigned matches(Key key) const {
#ifdef __AVX2__
        const __m256i four = _mm256_load_si256(reinterpret_cast<const __m256i*>(keys));
        const __m256i equal = _mm256_cmpeq_epi64(four, _mm256_set1_epi64x(static_cast<long long>(key)));
        return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(equal)));
#else
        unsigned mask = 0;
        for (unsigned i = 0; i < kEntries; ++i) mask |= static_cast<unsigned>(keys[i] == key) << i;
        return mask;
#endif
    }
};
static_assert(sizeof(IndexLine) == 64);

class KeyIndex {
    struct Bucket {
        std::uint32_t lines;
        std::uint32_t size : 30;
        std::uint32_t holes : 1;  // one was erased: a key may be in its second line though the first has room
        std::uint32_t spilled : 1;  // a key may be in neither of its lines, for lack of room
    };
    static_assert(sizeof(Bucket) == 8);

  public:
    struct Entry {  // where a key's entry is, until the next insert or erase
        IndexLine* line = nullptr;
        unsigned at = 0;

        explicit operator bool() const { return line != nullptr; }
        Key key() const { return line->keys[at]; }
        std::uint32_t slot() const { return line->slots[at] - 1; }
        std::uint32_t& stamp() const { return line->stamps[at]; }
    };

    // expected_rows: per bucket; up to so many the index is no larger than they need.
    KeyIndex(std::uint32_t num_buckets, std::uint32_t expected_rows, Arena& arena);

    std::uint32_t size(std::uint32_t bucket) const { return buckets_[bucket].size; }

    static constexpr std::uint32_t kSecondHash = 0x9e3779b1u;  // of the bits that choose the second line

    // Finds home lines as home_line() does. A copy of what that takes, which stores to other arrays can't
    // change, so that the compiler may keep it in registers; of no use once a bucket has grown.
    struct HomeLines {
        explicit HomeLines(const KeyIndex& index)
            : buckets(index.buckets_.data()),
              chunks(index.chunks_.data()),
              stride(index.stride_),
              log2_chunk_lines(index.log2_chunk_lines_) {}
        IndexLine* operator()(std::uint32_t bucket, Key key) const {
            const std::uint64_t number = std::uint64_t{home(key, buckets[bucket].lines)} * stride + bucket;
            return chunks[number >> log2_chunk_lines] +
                   (number & ((std::uint64_t{1} << log2_chunk_lines) - 1));
        }

        const Bucket* const buckets;
        IndexLine* const* const chunks;
        const std::uint32_t stride;
        const std::uint32_t log2_chunk_lines;
    };

    // The line where a key is looked for first. One that was asked for before the bucket grew is still a line
    // of it: a key that is found there is the key, another may be anywhere.
    IndexLine* home_line(std::uint32_t bucket, Key key) const {
        return line(bucket, home(key, buckets_[bucket].lines));
    }
    // Where to look for a key that isn't in its home line; null if that tells that it isn't there at all.
    IndexLine* second_line(std::uint32_t bucket, Key key, const IndexLine* home_line) const {
        const Bucket& at = buckets_[bucket];
        return home_line->full() || at.holes ? line(bucket, second(key, at.lines)) : nullptr;
    }

    Entry find(std::uint32_t bucket, Key key) const {
        IndexLine* const first = home_line(bucket, key);
        if (const Entry entry = find_in(first, key)) return entry;
        IndexLine* const then = second_line(bucket, key, first);
        if (then == nullptr) return {};
        if (const Entry entry = find_in(then, key)) return entry;
        return buckets_[bucket].spilled ? find_anywhere(bucket, key) : Entry{};
    }

    // Makes room for one more key in the bucket; the only call that can throw.
    void reserve_one(std::uint32_t bucket, Arena& arena) {
        const std::uint32_t lines = buckets_[bucket].lines;
        if (buckets_[bucket].size >= limit(lines)) grow(bucket, more_lines(bucket, lines), arena);
    }
    // Room for so many keys in all, as if they had come one by one, but moving those that are here only once.
    void reserve(std::uint32_t bucket, std::uint64_t rows, Arena& arena);
    // Precondition: room was reserved and the key isn't here.
    void insert(std::uint32_t bucket, Key key, std::uint32_t slot, std::uint32_t stamp);
    // Precondition: the entry is the bucket's.
    void erase(std::uint32_t bucket, Entry entry);

    // visit(Entry) for each key of the bucket.
    template <class Visit>
    void for_each(std::uint32_t bucket, Visit&& visit) const {
        const std::uint32_t lines = buckets_[bucket].lines;
        for (std::uint32_t j = 0; j < lines; ++j) {
            if (j + kLinesAhead < lines) prefetch_cold_line(line(bucket, j + kLinesAhead));
            IndexLine* at = line(bucket, j);
            for (unsigned i = 0; i < IndexLine::kEntries && at->slots[i] != 0; ++i) visit(Entry{at, i});
        }
    }

    std::size_t held_bytes() const;  // without the lines: those are the arena's

    // So many lines of each bucket, whether or not it has grown to use them.
    void provide(std::uint64_t lines, Arena& arena);

    struct Expected {
        std::uint32_t lines;        // of the longest bucket
        std::uint64_t lines_bytes;  // of all buckets, on pages that are written to
        std::size_t moving_bytes;   // beside them
    };
    // What would be needed for `rows` keys, in buckets of at most `most`.
    Expected expect(std::uint64_t rows, std::uint32_t most) const;
    std::size_t provided_bytes() const { return sizeof(IndexLine) * chunks_.size() << log2_chunk_lines_; }

  private:
    struct Moving {
        Key key;
        std::uint32_t slot;
        std::uint32_t stamp;
    };
    static constexpr std::uint32_t kLinesAhead = 8;

    // Most keys in so many lines, 81 %: beyond that, more and more keys must be moved to make room for one.
    // Up to 87.5 % in a bucket that is expected to grow no further.
    std::uint32_t limit(std::uint64_t lines) const {
        return static_cast<std::uint32_t>(lines == expected_lines_ ? lines * 7 / 2 : lines * 13 / 4);
    }
    static std::uint32_t home(Key key, std::uint32_t lines) {
        return static_cast<std::uint32_t>(std::uint64_t{tag_of(key)} * lines >> 32);
    }
    // Another line than the home, if there is one; by the bits that the home doesn't depend on.
    static std::uint32_t second(Key key, std::uint32_t lines) {
        const std::uint32_t hash = static_cast<std::uint32_t>(key >> 32) * kSecondHash;
        const std::uint32_t j =
            home(key, lines) + 1 + static_cast<std::uint32_t>(std::uint64_t{hash} * (lines - 1) >> 32);
        return j >= lines ? j - lines : j;
    }

    IndexLine* line(std::uint32_t bucket, std::uint32_t j) const {
        const std::uint64_t number = std::uint64_t{j} * stride_ + bucket;
        return chunks_[number >> log2_chunk_lines_] +
               (number & ((std::uint64_t{1} << log2_chunk_lines_) - 1));
    }
    static Entry find_in(IndexLine* line, Key key) {
        for (unsigned mask = line->matches(key); mask != 0; mask &= mask - 1) {
            const auto i = static_cast<unsigned>(__builtin_ctz(mask));
            if (line->slots[i] != 0) return {line, i};
        }
        return {};
    }
    Entry find_anywhere(std::uint32_t bucket, Key key) const;
    static bool add(IndexLine* line, const Moving& entry);  // false if it is full
    bool make_room(std::uint32_t bucket, Moving& entry);
    void grow(std::uint32_t bucket, std::uint32_t lines, Arena& arena);
    std::uint32_t more_lines(std::uint32_t bucket, std::uint64_t lines) const;

    std::uint32_t num_buckets_;
    std::uint32_t stride_;  // lines from one of a bucket to its next
    std::uint32_t log2_chunk_lines_;
    std::uint32_t expected_lines_;
    std::vector<Bucket> buckets_;
    std::vector<IndexLine*> chunks_;
    std::vector<Moving> moving_;
};

}  // namespace persia
