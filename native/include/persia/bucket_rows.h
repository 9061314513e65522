// The rows of one bucket: where they lie in memory and which slots are in use.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/arena.h"
#include "persia/key.h"

namespace persia {

inline constexpr std::uint32_t kFreed = UINT32_MAX;  // stamp and born of a freed slot: no step is this large

// A row's header; the embedding [dim] and the optimizer state [state_words] follow, as floats.
struct Row {
    Key key;
    std::uint32_t stamp;  // last step that used the row
    std::uint32_t born;   // step at which it was created, or re-created after an eviction

    float* data() { return reinterpret_cast<float*>(this + 1); }
    const float* data() const { return reinterpret_cast<const float*>(this + 1); }
};
static_assert(sizeof(Row) == 16);

// What all buckets of a table share.
struct RowLayout {
    RowLayout(std::uint32_t dim, std::uint32_t state_words);

    std::uint32_t dim;
    std::uint32_t state_words;
    std::uint32_t stride;           // bytes from row to row
    std::uint32_t log2_chunk_rows;  // of the largest chunks
};

// Slots are numbered from 0 and rows never move. Chunks of rows double from 8 rows up to about 64 KiB and
// then stay that size: a bucket with few rows takes little, and one with many wastes little.
class BucketRows {
  public:
    Row* at(std::uint32_t slot, const RowLayout& layout) const {
        const std::uint32_t x = slot + kFirstRows;
        const std::uint32_t e = std::min<std::uint32_t>(31u - __builtin_clz(x), layout.log2_chunk_rows);
        const std::uint32_t chunk = (e - kLog2FirstRows) + (x >> e) - 1;
        const std::size_t offset = x & ((1u << e) - 1);
        return reinterpret_cast<Row*>(chunks_[chunk] + offset * layout.stride);
    }

    std::uint32_t end_slot() const { return end_slot_; }  // all slots ever used are below
    std::size_t held_bytes() const {                      // without the rows: those are the arena's
        return chunks_.capacity() * sizeof(chunks_[0]) + free_.capacity() * sizeof(free_[0]);
    }

    std::uint32_t take(const RowLayout& layout, Arena& arena);
    void give_back(std::uint32_t slot, const RowLayout& layout);

    static constexpr std::uint32_t kLog2FirstRows = 3;
    static constexpr std::uint32_t kFirstRows = 1u << kLog2FirstRows;

  private:
    std::vector<std::byte*> chunks_;
    std::vector<std::uint32_t> free_;
    std::uint32_t end_slot_ = 0;
    std::uint32_t room_ = 0;  // slots that the chunks hold
};

}  // namespace persia
