#include "persia/row_store.h"

#include <algorithm>
#include <stdexcept>

namespace persia {
namespace {

// Of weights or states, whichever is larger. Larger where many rows are to be expected, so that the addresses
// of the chunks stay in the first cache; smaller in a small table, of which a chunk would be a large part.
constexpr std::size_t kLeastChunkBytes = std::size_t{4} << 10, kMostChunkBytes = std::size_t{8} << 20;
constexpr std::size_t kUsualChunkBytes = std::size_t{256} << 10;
constexpr std::size_t kFewChunks = 16, kChunks = 256;
constexpr std::size_t kEpochBytes = sizeof(std::uint32_t);
// A narrow state has its row's epoch right behind it, so that an update touches one line for both. A wide one
// would reach into a line more, each time, for an epoch that is seldom looked at.
constexpr std::size_t kNarrowBytes = 16;

}  // namespace

RowStore::RowStore(std::size_t weight_bytes, std::size_t state_bytes, std::uint64_t expected_rows)
    : weight_bytes_(weight_bytes), state_bytes_((state_bytes + 3) / 4 * 4), chunks_(1) {
    const bool narrow = state_bytes_ <= kNarrowBytes;
    state_stride_ = state_bytes_ + (narrow ? kEpochBytes : 0);
    epoch_stride_ = narrow ? state_stride_ : kEpochBytes;
    const std::size_t widest = std::max(weight_bytes_, state_stride_);
    const std::size_t least =
        std::clamp<std::size_t>(expected_rows * widest / kFewChunks, kLeastChunkBytes, kUsualChunkBytes);
    const std::size_t chunk_bytes =
        std::clamp<std::size_t>(expected_rows * widest / kChunks, least, kMostChunkBytes);
    while (widest << (log2_chunk_rows_ + 1) <= chunk_bytes) ++log2_chunk_rows_;
    chunk_mask_ = (1u << log2_chunk_rows_) - 1;
}

void RowStore::add_chunk(Arena& arena) {
    if (chunks_.size() == chunks_.capacity()) chunks_.reserve(2 * chunks_.size() + 1);  // may throw: first
    const auto allocate = [&](std::size_t row_bytes) {
        return static_cast<std::byte*>(arena.allocate(row_bytes << log2_chunk_rows_));
    };
    Chunk chunk;
    chunk.weights = allocate(weight_bytes_);
    chunk.states = allocate(state_stride_);
    chunk.epochs = epoch_stride_ == state_stride_ ? chunk.states + state_bytes_ : allocate(epoch_stride_);
    if (end_slot_ == 0) chunks_.clear();
    chunks_.push_back(chunk);
}

std::uint32_t RowStore::take(Arena& arena) {
    if (!free_.empty()) {
        const std::uint32_t slot = free_.back();
        free_.pop_back();
        return slot;
    }
    if (end_slot_ >= kFreed - 1) throw std::length_error("a table shard has more than 2^32 - 2 rows");
    if (end_slot_ >> log2_chunk_rows_ == chunks_.size() || end_slot_ == 0) add_chunk(arena);
    return end_slot_++;
}

std::size_t RowStore::unwritten_bytes(std::uint64_t rows, std::size_t page_bytes) const {
    const std::uint64_t left = (chunk_rows() - rows % chunk_rows()) % chunk_rows();
    std::size_t bytes = 0;
    for (const std::size_t width : {weight_bytes_, state_stride_})
        bytes += left * width / page_bytes * page_bytes;
    if (epoch_stride_ != state_stride_) bytes += left * epoch_stride_ / page_bytes * page_bytes;
    return bytes;
}

void RowStore::give_back(std::uint32_t slot) {
    epoch(slot) = kFreed;
    free_.push_back(slot);
}

}  // namespace persia
