// key -> (slot, stamp) for the buckets of one table shard.
//
// Each bucket is a hash table of its own, of cache lines with four entries each, probed line after line from
// the key's home. A line holds whole keys, so a look-up touches one line of the index (mostly) and never a
// row, and it holds the stamps, so that recency and eviction don't touch rows either.
//
// The lines of all buckets interleave in memory: line j of every bucket lies in the j-th run of num_buckets
// lines. Buckets hold nearly equal numbers of keys (the bucket is a hash), so the memory in use is a compact
// prefix, a bucket grows in place, one at a time and by an eighth, and nothing is ever outgrown.
#pragma once

#include <cstdint>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "persia/arena.h"
#include "persia/key.h"

namespace persia {

inline constexpr std::uint32_t kNoSlot = UINT32_MAX;

struct alignas(64) IndexLine {  // entries are filled from the front
    static constexpr unsigned kEntries = 4;

    Key keys[kEntries];
    std::uint32_t slots[kEntries];   // slot + 1; 0: empty
    std::uint32_t stamps[kEntries];  // what eviction orders by, see eviction.h

    bool full() const { return slots[kEntries - 1] != 0; }

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

    // Where a key is looked for, prepared while other keys are worked on: start() asks for the first line,
    // look_ahead() for the second if the key needs it, find() then waits for neither.
    struct Probe {
        std::uint32_t bucket;
        std::uint32_t j;
        std::uint32_t growths;  // of the index: lines change when a bucket grows
        IndexLine* line;
    };
    // Always inlined, see prefetch.h.
    __attribute__((always_inline)) Probe start(std::uint32_t bucket, Key key) const {
        const std::uint32_t j = home(key, buckets_[bucket].lines);
        IndexLine* at = line(bucket, j);
        __builtin_prefetch(at, 1);
        return {bucket, j, growths_, at};
    }
    __attribute__((always_inline)) void look_ahead(Probe& probe, Key key) const {
        if (probe.line->matches(key) != 0 || !probe.line->full() || probe.growths != growths_) return;
        probe.j = next(probe.j, buckets_[probe.bucket].lines);
        probe.line = line(probe.bucket, probe.j);
        __builtin_prefetch(probe.line, 1);
    }

    Entry find(Probe probe, Key key) const {
        if (probe.growths != growths_) return find(probe.bucket, key);
        return find_from(probe.bucket, probe.j, probe.line, key);
    }
    Entry find(std::uint32_t bucket, Key key) const {
        const std::uint32_t j = home(key, buckets_[bucket].lines);
        return find_from(bucket, j, line(bucket, j), key);
    }

    // Makes room for one more key in the bucket; the only call that can throw.
    void reserve_one(std::uint32_t bucket, Arena& arena) {
        if (buckets_[bucket].size >= limit(buckets_[bucket].lines)) grow(bucket, arena);
    }
    // Precondition: room was reserved and the key isn't here.
    void insert(std::uint32_t bucket, Key key, std::uint32_t slot, std::uint32_t stamp);
    // Precondition: the entry is the bucket's.
    void erase(std::uint32_t bucket, Entry entry);

    // visit(Entry) for each key of the bucket.
    template <class Visit>
    void for_each(std::uint32_t bucket, Visit&& visit) const {
        const std::uint32_t lines = buckets_[bucket].lines;
        for (std::uint32_t j = 0; j < lines; ++j) {
            if (j + kLinesAhead < lines) __builtin_prefetch(line(bucket, j + kLinesAhead));
            IndexLine* at = line(bucket, j);
            for (unsigned i = 0; i < IndexLine::kEntries && at->slots[i] != 0; ++i) visit(Entry{at, i});
        }
    }

    std::size_t held_bytes() const;  // without the lines: those are the arena's

  private:
    struct Bucket {
        std::uint32_t lines;
        std::uint32_t size;
    };
    struct Moving {
        Key key;
        std::uint32_t slot;
        std::uint32_t stamp;
    };
    static constexpr std::uint32_t kLinesAhead = 8;

    // Most keys in so many lines: 27 in 8 lines, 84 %. Beyond that runs of full lines grow fast.
    static std::uint32_t limit(std::uint64_t lines) { return static_cast<std::uint32_t>(lines * 27 / 8); }
    static std::uint32_t home(Key key, std::uint32_t lines) {
        return static_cast<std::uint32_t>(std::uint64_t{tag_of(key)} * lines >> 32);
    }
    static std::uint32_t next(std::uint32_t j, std::uint32_t lines) { return j + 1 == lines ? 0 : j + 1; }

    IndexLine* line(std::uint32_t bucket, std::uint32_t j) const {
        // Turned by an amount that looks random, because lines a power of two apart would share a few sets
        // of the cache.
        const std::uint32_t turn =
            static_cast<std::uint32_t>(std::uint64_t{j * 0x9e3779b1u} * num_buckets_ >> 32);
        std::uint64_t column = std::uint64_t{bucket} + turn;
        if (column >= num_buckets_) column -= num_buckets_;
        const std::uint64_t number = std::uint64_t{j} * num_buckets_ + column;
        return chunks_[number >> log2_chunk_lines_] +
               (number & ((std::uint64_t{1} << log2_chunk_lines_) - 1));
    }
    Entry find_from(std::uint32_t bucket, std::uint32_t j, IndexLine* at, Key key) const {
        while (true) {
            for (unsigned mask = at->matches(key); mask != 0; mask &= mask - 1) {
                const auto i = static_cast<unsigned>(__builtin_ctz(mask));
                if (at->slots[i] != 0) return {at, i};
            }
            if (!at->full()) return {};
            j = next(j, buckets_[bucket].lines);
            at = line(bucket, j);
        }
    }
    void provide(std::uint64_t lines, Arena& arena);  // so many of each bucket
    void grow(std::uint32_t bucket, Arena& arena);
    std::uint32_t more_lines(std::uint32_t bucket) const;

    std::uint32_t num_buckets_;
    std::uint32_t log2_chunk_lines_;
    std::uint32_t expected_lines_;
    std::uint32_t growths_ = 0;
    std::vector<Bucket> buckets_;
    std::vector<IndexLine*> chunks_;
    std::vector<Moving> moving_;
};

}  // namespace persia
