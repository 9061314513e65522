// Rows of one table shard by slot: weights, and beside them, in memory of their own, what only updates need.
//
// Rows never move. Weights lie packed, so a pull touches their bytes and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/arena.h"
#include "persia/prefetch.h"

namespace persia {

inline constexpr std::uint32_t kFreed = UINT32_MAX;  // epoch of a slot without a row

class RowStore {
    struct Chunk {
        std::byte* weights;
        std::byte* states;
        std::byte* epochs;
    };
    static_assert(sizeof(Chunk) == 3 * sizeof(std::byte*));

  public:
    // Finds weights as weights() does: a copy like KeyIndex::HomeLines, of no use once a chunk was added.
    struct Weights {
        explicit Weights(const RowStore& rows)
            : chunks(rows.chunks_.data()),
              log2_chunk_rows(rows.log2_chunk_rows_),
              chunk_mask(rows.chunk_mask_),
              bytes(rows.weight_bytes_) {}
        const std::byte* operator()(std::uint32_t slot) const {
            return chunks[slot >> log2_chunk_rows].weights + (slot & chunk_mask) * bytes;
        }

        const Chunk* const chunks;
        const std::uint32_t log2_chunk_rows;
        const std::uint32_t chunk_mask;
        const std::size_t bytes;
    };

    // Bytes of a row's weights and of its optimizer's state, and how many rows are to be expected.
    RowStore(std::size_t weight_bytes, std::size_t state_bytes, std::uint64_t expected_rows);

    std::byte* weights(std::uint32_t slot) const {
        return chunks_[slot >> log2_chunk_rows_].weights + (slot & chunk_mask_) * weight_bytes_;
    }
    std::byte* state(std::uint32_t slot) const {
        return chunks_[slot >> log2_chunk_rows_].states + (slot & chunk_mask_) * state_stride_;
    }
    // The table's epoch when the row was created, see shard.h.
    std::uint32_t& epoch(std::uint32_t slot) const {
        return *reinterpret_cast<std::uint32_t*>(chunks_[slot >> log2_chunk_rows_].epochs +
                                                 (slot & chunk_mask_) * epoch_stride_);
    }

    std::uint32_t end_slot() const { return end_slot_; }  // all slots ever used are below
    std::uint32_t take(Arena& arena);                     // a free slot; the row's bytes are not set
    void give_back(std::uint32_t slot);
    // Asks for the memory of the row that take() will give so many calls later.
    void ask_for_free(std::size_t calls) const {
        if (calls >= free_.size()) return;
        const std::uint32_t slot = free_[free_.size() - 1 - calls];
        prefetch_cold_lines(weights(slot), weight_lines());
        prefetch_cold_lines(state(slot), state_lines());
    }

    std::size_t weight_lines() const { return lines_of(weight_bytes_); }
    std::size_t state_lines() const { return lines_of(state_stride_); }
    std::size_t held_bytes() const {  // without the rows: those are the arena's
        return chunks_.capacity() * sizeof(Chunk) + free_.capacity() * sizeof(free_[0]);
    }
    // Memory for as many rows more as a chunk has.
    void add_chunk(Arena& arena);
    std::uint64_t chunk_rows() const { return std::uint64_t{chunk_mask_} + 1; }
    // Whole pages of the last chunk that `rows` rows leave unwritten.
    std::size_t unwritten_bytes(std::uint64_t rows, std::size_t page_bytes) const;

  private:
    std::size_t weight_bytes_;
    std::size_t state_bytes_;
    std::size_t state_stride_;
    std::size_t epoch_stride_;
    std::uint32_t log2_chunk_rows_ = 0;
    std::uint32_t chunk_mask_;
    std::vector<Chunk> chunks_;  // never none, so that an address of slot 0 can be computed for a prefetch
    std::vector<std::uint32_t> free_;
    std::uint32_t end_slot_ = 0;
};

}  // namespace persia
