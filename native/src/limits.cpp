#include "persia/limits.h"

#include <cstring>

#include "persia/prefetch.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 16;

}  // namespace

MemoryLimits::MemoryLimits(std::uint64_t num_rows, std::size_t row_bytes, std::size_t state_bytes)
    : num_rows_(num_rows),
      row_bytes_(row_bytes),
      state_bytes_(state_bytes),
      rows_(static_cast<std::byte*>(arena_.allocate(num_rows * row_bytes))),
      states_(static_cast<std::byte*>(arena_.allocate(num_rows * state_bytes + 1))),
      entries_(static_cast<Entry*>(arena_.allocate(num_rows * sizeof(Entry)))) {
    std::memset(rows_, 1, num_rows * row_bytes);
    std::memset(states_, 1, num_rows * state_bytes + 1);
    std::memset(static_cast<void*>(entries_), 1, num_rows * sizeof(Entry));
}

void MemoryLimits::gather(Span<const std::uint64_t> places, Span<std::byte> out) const {
    const std::size_t n = places.size();
    for (std::size_t i = 0; i < n; ++i) {
        if (i + kAhead < n) prefetch_cold(rows_ + places[i + kAhead] * row_bytes_, row_bytes_);
        std::memcpy(out.data() + i * row_bytes_, rows_ + places[i] * row_bytes_, row_bytes_);
    }
}

std::uint64_t MemoryLimits::gather_with_entries(Span<const std::uint64_t> places,
                                                Span<const std::uint64_t> entries,
                                                Span<std::byte> out) const {
    const std::size_t n = places.size();
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
        if (i + kAhead < n) {
            prefetch_cold_line(entries_ + entries[i + kAhead]);
            prefetch_cold(rows_ + places[i + kAhead] * row_bytes_, row_bytes_);
        }
        sum += entries_[entries[i]].key ^ entries_[entries[i]].value;
        std::memcpy(out.data() + i * row_bytes_, rows_ + places[i] * row_bytes_, row_bytes_);
    }
    return sum;
}

void MemoryLimits::update(Span<const std::uint64_t> places, Span<const std::byte> gradients) {
    const std::size_t n = places.size();
    const std::size_t row_words = row_bytes_ / 4, state_words = state_bytes_ / 4;
    for (std::size_t i = 0; i < n; ++i) {
        if (i + kAhead < n) {
            prefetch_cold(rows_ + places[i + kAhead] * row_bytes_, row_bytes_);
            if (state_bytes_ != 0) prefetch_cold(states_ + places[i + kAhead] * state_bytes_, state_bytes_);
        }
        auto* __restrict row = reinterpret_cast<std::uint32_t*>(rows_ + places[i] * row_bytes_);
        auto* __restrict state = reinterpret_cast<std::uint32_t*>(states_ + places[i] * state_bytes_);
        const auto* __restrict gradient =
            reinterpret_cast<const std::uint32_t*>(gradients.data() + i * row_bytes_);
        for (std::size_t w = 0; w < row_words; ++w) row[w] += gradient[w];
        for (std::size_t w = 0; w < state_words; ++w) state[w] += 1;
    }
}

}  // namespace persia
