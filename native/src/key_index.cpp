#include "persia/key_index.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace persia {
namespace {

constexpr std::uint32_t kLog2LeastChunk = 8, kLog2MostChunk = 14;  // lines: 16 KiB, 1 MiB

}  // namespace

KeyIndex::KeyIndex(std::uint32_t num_buckets, std::uint32_t expected_rows, Arena& arena)
    : num_buckets_(num_buckets), log2_chunk_lines_(kLog2LeastChunk), buckets_(num_buckets, Bucket{1, 0}) {
    // At most two lines of each bucket, so that a table with few rows takes little.
    while (log2_chunk_lines_ < kLog2MostChunk && (1u << log2_chunk_lines_) < num_buckets) ++log2_chunk_lines_;
    // A step's new rows come before the evictions that make room for them.
    const std::uint64_t rows = std::uint64_t{expected_rows} + expected_rows / 64 + 8;
    expected_lines_ = static_cast<std::uint32_t>(std::min<std::uint64_t>(rows * 8 / 27 + 1, UINT32_MAX));
    provide(1, arena);
}

void KeyIndex::provide(std::uint64_t lines, Arena& arena) {
    while (std::uint64_t{chunks_.size()} << log2_chunk_lines_ < lines * num_buckets_) {
        if (chunks_.size() == chunks_.capacity())
            chunks_.reserve(2 * chunks_.size() + 1);  // may throw: first
        chunks_.push_back(static_cast<IndexLine*>(arena.allocate(sizeof(IndexLine) << log2_chunk_lines_)));
    }
}

std::uint32_t KeyIndex::more_lines(std::uint32_t bucket) const {
    const std::uint64_t lines = buckets_[bucket].lines;
    // An eighth, and a little that differs, so that buckets, all of one size, don't all grow at one time.
    const std::uint64_t spread = mix(std::uint64_t{bucket} << 32 | lines) % (lines / 16 + 1);
    std::uint64_t more = lines + lines / 8 + 1 + spread;
    if (lines < expected_lines_) more = std::min<std::uint64_t>(more, expected_lines_);
    if (more >= UINT32_MAX / 4) throw std::length_error("a table's bucket has more than 2^30 rows");
    return static_cast<std::uint32_t>(more);
}

void KeyIndex::grow(std::uint32_t bucket, Arena& arena) {
    const std::uint32_t more = more_lines(bucket);
    provide(more, arena);
    moving_.clear();
    moving_.reserve(buckets_[bucket].size);
    for_each(bucket, [&](Entry entry) { moving_.push_back({entry.key(), entry.slot(), entry.stamp()}); });
    for (std::uint32_t j = 0; j < buckets_[bucket].lines; ++j) {
        std::memset(static_cast<void*>(line(bucket, j)), 0, sizeof(IndexLine));
    }
    buckets_[bucket] = {more, 0};
    ++growths_;
    // A home is proportional to the tag, so the entries come in nearly the order of their new lines.
    for (std::size_t i = 0; i < moving_.size(); ++i) {
        if (i + 4 * kLinesAhead < moving_.size()) start(bucket, moving_[i + 4 * kLinesAhead].key);
        insert(bucket, moving_[i].key, moving_[i].slot, moving_[i].stamp);
    }
}

void KeyIndex::insert(std::uint32_t bucket, Key key, std::uint32_t slot, std::uint32_t stamp) {
    const std::uint32_t lines = buckets_[bucket].lines;
    std::uint32_t j = home(key, lines);
    IndexLine* at = line(bucket, j);
    while (at->full()) {
        j = next(j, lines);
        at = line(bucket, j);
    }
    unsigned i = 0;
    while (at->slots[i] != 0) ++i;
    at->keys[i] = key;
    at->slots[i] = slot + 1;
    at->stamps[i] = stamp;
    ++buckets_[bucket].size;
}

void KeyIndex::erase(std::uint32_t bucket, Entry entry) {
    const std::uint32_t lines = buckets_[bucket].lines;
    const auto distance = [lines](std::uint32_t from, std::uint32_t to) {
        return to >= from ? to - from : to + lines - from;
    };
    // Takes an entry out of its line and keeps the line filled from the front.
    const auto take_out = [](IndexLine* from, unsigned i) {
        unsigned last = IndexLine::kEntries - 1;
        while (from->slots[last] == 0) --last;
        from->keys[i] = from->keys[last];
        from->slots[i] = from->slots[last];
        from->stamps[i] = from->stamps[last];
        from->keys[last] = 0;
        from->slots[last] = 0;
    };
    std::uint32_t hole = home(entry.key(), lines);
    while (line(bucket, hole) != entry.line) hole = next(hole, lines);
    bool passed = entry.line->full();  // only past a full line can there be keys whose home is before
    take_out(entry.line, entry.at);
    --buckets_[bucket].size;
    for (std::uint32_t j = next(hole, lines); passed && j != hole; j = next(j, lines)) {
        IndexLine* from = line(bucket, j);
        passed = from->full();
        for (unsigned i = 0; i < IndexLine::kEntries && from->slots[i] != 0; ++i) {
            if (distance(home(from->keys[i], lines), j) < distance(hole, j)) continue;
            IndexLine* into = line(bucket, hole);
            constexpr unsigned last = IndexLine::kEntries - 1;  // it was full but for this one
            into->keys[last] = from->keys[i];
            into->slots[last] = from->slots[i];
            into->stamps[last] = from->stamps[i];
            take_out(from, i);
            hole = j;
            break;
        }
    }
}

std::size_t KeyIndex::held_bytes() const {
    return buckets_.capacity() * sizeof(Bucket) + chunks_.capacity() * sizeof(IndexLine*) +
           moving_.capacity() * sizeof(Moving);
}

}  // namespace persia
