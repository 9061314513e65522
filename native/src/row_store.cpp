#include "persia/row_store.h"

#include <algorithm>
#include <stdexcept>

namespace persia {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{256} << 10;  // of weights or states, whichever is larger

}  // namespace

RowStore::RowStore(std::size_t weight_bytes, std::size_t state_bytes)
    : weight_bytes_(weight_bytes), state_stride_((sizeof(RowState) + state_bytes + 3) / 4 * 4) {
    const std::size_t widest = std::max(weight_bytes_, state_stride_);
    while (widest << (log2_chunk_rows_ + 1) <= kChunkBytes) ++log2_chunk_rows_;
    chunk_mask_ = (1u << log2_chunk_rows_) - 1;
}

std::uint32_t RowStore::take(Arena& arena) {
    if (!free_.empty()) {
        const std::uint32_t slot = free_.back();
        free_.pop_back();
        return slot;
    }
    if (end_slot_ >= kFreed - 1) throw std::length_error("a table shard has more than 2^32 - 2 rows");
    if (end_slot_ >> log2_chunk_rows_ == chunks_.size()) {
        if (chunks_.size() == chunks_.capacity())
            chunks_.reserve(2 * chunks_.size() + 1);  // may throw: first
        Chunk chunk;
        chunk.weights = static_cast<std::byte*>(arena.allocate(weight_bytes_ << log2_chunk_rows_));
        chunk.states = static_cast<std::byte*>(arena.allocate(state_stride_ << log2_chunk_rows_));
        chunks_.push_back(chunk);
    }
    return end_slot_++;
}

void RowStore::give_back(std::uint32_t slot) {
    state(slot)->epoch = kFreed;
    free_.push_back(slot);
}

}  // namespace persia
