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

// Head of what lies beside a row's weights; the optimizer's state follows.
struct RowState {
    std::uint32_t epoch;  // of the table when the row was created, see shard.h

    std::byte* optimizer() { return reinterpret_cast<std::byte*>(this + 1); }
    const std::byte* optimizer() const { return reinterpret_cast<const std::byte*>(this + 1); }
};
static_assert(sizeof(RowState) == 4);

class RowStore {
  public:
    // Bytes of a row's weights and of its optimizer's state.
    RowStore(std::size_t weight_bytes, std::size_t state_bytes);

    std::byte* weights(std::uint32_t slot) const {
        return chunks_[slot >> log2_chunk_rows_].weights + (slot & chunk_mask_) * weight_bytes_;
    }
    RowState* state(std::uint32_t slot) const {
        return reinterpret_cast<RowState*>(chunks_[slot >> log2_chunk_rows_].states +
                                           (slot & chunk_mask_) * state_stride_);
    }

    __attribute__((always_inline)) void prefetch_weights(std::uint32_t slot) const {
        prefetch(weights(slot), weight_bytes_);
    }
    __attribute__((always_inline)) void prefetch_all(std::uint32_t slot) const {
        prefetch(weights(slot), weight_bytes_);
        prefetch(state(slot), state_stride_);
    }

    std::uint32_t end_slot() const { return end_slot_; }  // all slots ever used are below
    std::uint32_t take(Arena& arena);                     // a free slot; the row's bytes are not set
    void give_back(std::uint32_t slot);

    std::size_t weight_bytes() const { return weight_bytes_; }
    std::size_t held_bytes() const {  // without the rows: those are the arena's
        return chunks_.capacity() * sizeof(Chunk) + free_.capacity() * sizeof(free_[0]);
    }

  private:
    struct Chunk {
        std::byte* weights;
        std::byte* states;
    };

    std::size_t weight_bytes_;
    std::size_t state_stride_;
    std::uint32_t log2_chunk_rows_ = 0;
    std::uint32_t chunk_mask_;
    std::vector<Chunk> chunks_;
    std::vector<std::uint32_t> free_;
    std::uint32_t end_slot_ = 0;
};

}  // namespace persia
