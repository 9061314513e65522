#include "persia/key_index.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

namespace persia {
namespace {

constexpr std::uint32_t kLog2LeastChunk = 8, kLog2MostChunk = 14;  // lines: 16 KiB, 1 MiB
constexpr int kMostMoves = 256;                                    // of other keys, to make room for one
constexpr std::uint32_t kLinesOfPage = 4096 / sizeof(IndexLine);

}  // namespace

KeyIndex::KeyIndex(std::uint32_t num_buckets, std::uint32_t expected_rows, Arena& arena)
    : num_buckets_(num_buckets),
      stride_(num_buckets < 64 ? num_buckets : num_buckets | 1),
      log2_chunk_lines_(kLog2LeastChunk),
      buckets_(num_buckets, Bucket{1, 0, 0, 0}) {
    // At most two lines of each bucket, so that a table with few rows takes little.
    while (log2_chunk_lines_ < kLog2MostChunk && (1u << log2_chunk_lines_) < stride_) ++log2_chunk_lines_;
    // A step's new rows come before the evictions that make room for them.
    const std::uint64_t rows = std::uint64_t{expected_rows} + expected_rows / 64 + 8;
    expected_lines_ = static_cast<std::uint32_t>(rows * 2 / 7 + 1);
    provide(1, arena);
}

void KeyIndex::provide(std::uint64_t lines, Arena& arena) {
    while (std::uint64_t{chunks_.size()} << log2_chunk_lines_ < lines * stride_) {
        if (chunks_.size() == chunks_.capacity())
            chunks_.reserve(2 * chunks_.size() + 1);  // may throw: first
        chunks_.push_back(static_cast<IndexLine*>(arena.allocate(sizeof(IndexLine) << log2_chunk_lines_)));
    }
}

std::uint32_t KeyIndex::more_lines(std::uint32_t bucket, std::uint64_t lines) const {
    // A quarter, or a little more, so that buckets, all of one size, don't all grow at one time.
    const std::uint64_t spread = mix(std::uint64_t{bucket} << 32 | lines) % (lines / 16 + 1);
    std::uint64_t more = lines + lines / 4 + 1 + spread;
    if (lines < expected_lines_) more = std::min<std::uint64_t>(more, expected_lines_);
    if (more * 7 / 2 >= 1u << 30)
        throw std::length_error("a table's bucket would need room for more than 2^30 rows");
    return static_cast<std::uint32_t>(more);
}

__attribute__((always_inline)) inline bool KeyIndex::add(IndexLine* line, const Moving& entry) {
    if (line->full()) return false;
    const unsigned i = line->size();
    line->keys[i] = entry.key;
    line->slots[i] = entry.slot;
    line->stamps[i] = entry.stamp;
    return true;
}

void KeyIndex::reserve(std::uint32_t bucket, std::uint64_t rows, Arena& arena) {
    std::uint32_t lines = buckets_[bucket].lines;
    while (rows > limit(lines)) lines = more_lines(bucket, lines);
    if (lines > buckets_[bucket].lines) grow(bucket, lines, arena);
}

void KeyIndex::grow(std::uint32_t bucket, std::uint32_t more, Arena& arena) {
    provide(more, arena);
    moving_.clear();
    moving_.reserve(buckets_[bucket].size);
    const std::uint32_t lines = buckets_[bucket].lines;
    for (std::uint32_t j = 0; j < lines; ++j) {
        if (j + kLinesAhead < lines) prefetch_cold_line(line(bucket, j + kLinesAhead));
        IndexLine* const from = line(bucket, j);
        for (unsigned i = 0; i < IndexLine::kEntries && from->slots[i] != 0; ++i) {
            moving_.push_back({from->keys[i], from->slots[i], from->stamps[i]});
        }
        std::memset(static_cast<void*>(from), 0, sizeof *from);
    }
    buckets_[bucket] = {more, 0, 0, 0};
    // A home is proportional to the tag, so the entries come in nearly the order of their new lines. Those
    // that find no room there are few, and all over the bucket.
    std::size_t left = 0;
    for (std::size_t i = 0; i < moving_.size(); ++i) {
        if (i + 4 * kLinesAhead < moving_.size())
            prefetch_cold_line(home_line(bucket, moving_[i + 4 * kLinesAhead].key));
        const Moving entry = moving_[i];
        if (add(home_line(bucket, entry.key), entry)) {
            ++buckets_[bucket].size;
        } else {
            moving_[left++] = entry;
        }
    }
    for (std::size_t i = 0; i < left; ++i) {
        if (i + kLinesAhead < left)
            prefetch_cold_line(line(bucket, second(moving_[i + kLinesAhead].key, more)));
        insert(bucket, moving_[i].key, moving_[i].slot - 1, moving_[i].stamp);
    }
}

// Puts the entry into its home line, moving one from there to its other line, and so on. False, with the
// entry that is left over, if that doesn't end.
bool KeyIndex::make_room(std::uint32_t bucket, Moving& entry) {
    const std::uint32_t lines = buckets_[bucket].lines;
    std::uint32_t j = home(entry.key, lines);
    for (int moves = 0; moves < kMostMoves; ++moves) {
        IndexLine* const from = line(bucket, j);
        const auto i = static_cast<unsigned>(moves) % IndexLine::kEntries;
        std::swap(entry.key, from->keys[i]);
        std::swap(entry.slot, from->slots[i]);
        std::swap(entry.stamp, from->stamps[i]);
        const std::uint32_t first = home(entry.key, lines);
        j = j == first ? second(entry.key, lines) : first;
        if (add(line(bucket, j), entry)) return true;
    }
    return false;
}

void KeyIndex::insert(std::uint32_t bucket, Key key, std::uint32_t slot, std::uint32_t stamp) {
    Bucket& at = buckets_[bucket];
    ++at.size;
    Moving entry{key, slot + 1, stamp};
    if (add(home_line(bucket, key), entry) || add(line(bucket, second(key, at.lines)), entry)) return;
    if (make_room(bucket, entry)) return;
    at.spilled = 1;
    std::uint32_t j = 0;
    while (!add(line(bucket, j), entry)) ++j;  // there is room: one was reserved
}

KeyIndex::Entry KeyIndex::find_anywhere(std::uint32_t bucket, Key key) const {
    for (std::uint32_t j = 0; j < buckets_[bucket].lines; ++j) {
        if (const Entry entry = find_in(line(bucket, j), key)) return entry;
    }
    return {};
}

void KeyIndex::erase(std::uint32_t bucket, Entry entry) {
    IndexLine* const from = entry.line;
    unsigned last = IndexLine::kEntries - 1;  // the line stays filled from the front
    while (from->slots[last] == 0) --last;
    from->keys[entry.at] = from->keys[last];
    from->slots[entry.at] = from->slots[last];
    from->stamps[entry.at] = from->stamps[last];
    from->slots[last] = 0;
    --buckets_[bucket].size;
    buckets_[bucket].holes = 1;
}

KeyIndex::Expected KeyIndex::expect(std::uint64_t rows, std::uint32_t most) const {
    // Keys are hashed: each bucket draws its number of them from those that the buckets before it left over.
    std::minstd_rand random;
    const bool all_full = rows >= std::uint64_t{most} * num_buckets_;
    std::uint64_t left = rows, num_lines = 0;
    Expected expected{};
    std::uint32_t longest = 0;  // of the buckets whose lines share pages: these are there if one needs them
    for (std::uint32_t bucket = 0; bucket < num_buckets_; ++bucket) {
        std::binomial_distribution<std::uint64_t> draw(left, 1.0 / (num_buckets_ - bucket));
        const std::uint64_t drawn = draw(random);
        left -= drawn;
        const std::uint64_t size = all_full ? most : std::min<std::uint64_t>(drawn, most);
        expected.moving_bytes = std::max<std::size_t>(expected.moving_bytes, size * sizeof(Moving));
        std::uint32_t lines = 1;
        while (size > limit(lines)) lines = more_lines(bucket, lines);
        longest = std::max(longest, lines);
        if ((bucket + 1) % kLinesOfPage != 0 && bucket + 1 != num_buckets_) continue;
        expected.lines = std::max(expected.lines, longest);
        num_lines += std::uint64_t{longest} * (bucket % kLinesOfPage + 1);
        longest = 0;
    }
    if (rows == 0) return expected;
    // Few keys are on few of the pages.
    const double pages = std::ceil(static_cast<double>(num_lines) / kLinesOfPage);
    const double touched = -std::expm1(static_cast<double>(rows) * std::log1p(-1 / std::max(pages, 1.0)));
    expected.lines_bytes =
        static_cast<std::uint64_t>(touched * static_cast<double>(num_lines * sizeof(IndexLine)));
    return expected;
}

std::size_t KeyIndex::held_bytes() const {
    return buckets_.capacity() * sizeof(Bucket) + chunks_.capacity() * sizeof(IndexLine*) +
           moving_.capacity() * sizeof(Moving);
}

}  // namespace persia
