#include "persia/bucket_rows.h"

namespace persia {
namespace {

constexpr std::uint32_t kChunkBytes = 64 << 10;

}  // namespace

RowLayout::RowLayout(std::uint32_t dim, std::uint32_t state_words)
    : dim(dim),
      state_words(state_words),
      stride((static_cast<std::uint32_t>(sizeof(Row) + sizeof(float) * (dim + state_words)) + 15) / 16 * 16),
      log2_chunk_rows(BucketRows::kLog2FirstRows) {
    while ((std::uint64_t{stride} << (log2_chunk_rows + 1)) <= kChunkBytes) ++log2_chunk_rows;
}

std::uint32_t BucketRows::take(const RowLayout& layout, Arena& arena) {
    if (!free_.empty()) {
        const std::uint32_t slot = free_.back();
        free_.pop_back();
        return slot;
    }
    if (end_slot_ == room_) {
        const auto e = std::min<std::uint32_t>(kLog2FirstRows + static_cast<std::uint32_t>(chunks_.size()),
                                               layout.log2_chunk_rows);
        chunks_.push_back(nullptr);
        try {
            chunks_.back() = static_cast<std::byte*>(arena.allocate(std::size_t{layout.stride} << e));
        } catch (...) {
            chunks_.pop_back();
            throw;
        }
        room_ += 1u << e;
    }
    return end_slot_++;
}

void BucketRows::give_back(std::uint32_t slot, const RowLayout& layout) {
    Row* row = at(slot, layout);
    row->stamp = kFreed;
    row->born = kFreed;
    free_.push_back(slot);
}

}  // namespace persia
