#include "persia/id_counter.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

namespace persia {

void IdCounter::Free::operator()(Entry* entries) const { std::free(entries); }

void IdCounter::reserve(std::size_t size) {
    if (places_ != 0 && size <= places_ / 5 * 3) return;
    std::size_t places = std::max<std::size_t>(places_, 1024);
    while (size > places / 5 * 3) places *= 2;
    // calloc: the kernel's zero pages needn't be written.
    std::unique_ptr<Entry[], Free> entries(static_cast<Entry*>(std::calloc(places, sizeof(Entry))));
    if (!entries) throw std::bad_alloc();
    std::swap(entries_, entries);
    const std::size_t old_places = std::exchange(places_, places);
    for (std::size_t i = 0; i < old_places; ++i) {
        if (entries[i].count != 0) find(home(entries[i].id), entries[i].id) = entries[i];
    }
}

void IdCounter::add(Span<const std::uint64_t> ids, Span<const std::uint64_t> counts) {
    const std::size_t n = ids.size();
    std::size_t homes[kAhead];
    for (std::size_t begin = 0; begin < n; begin += kAhead) {
        const std::size_t block = std::min(kAhead, n - begin);
        reserve(size_ + block);
        for (std::size_t i = 0; i < block; ++i) {
            homes[i] = home(ids[begin + i]);
            prefetch_line(&entries_[homes[i]]);
        }
        for (std::size_t i = 0; i < block; ++i) {
            Entry& entry = find(homes[i], ids[begin + i]);
            size_ += entry.count == 0;
            entry.id = ids[begin + i];
            entry.count += counts.empty() ? 1 : counts[begin + i];
        }
    }
}

void IdCounter::items(Span<std::uint64_t> ids, Span<std::uint64_t> counts) const {
    std::size_t n = 0;
    for (std::size_t i = 0; i < places_; ++i) {
        if (entries_[i].count == 0) continue;
        ids[n] = entries_[i].id;
        counts[n++] = entries_[i].count;
    }
}

void IdCounter::replace_unknown(Span<const std::uint64_t> from, Span<std::uint64_t> to,
                                std::uint64_t other) const {
    const std::size_t n = from.size();
    if (size_ == 0) {
        std::fill_n(to.begin(), n, other);
        return;
    }
    std::size_t homes[kAhead];
    for (std::size_t begin = 0; begin < n; begin += kAhead) {
        const std::size_t block = std::min(kAhead, n - begin);
        for (std::size_t i = 0; i < block; ++i) {
            homes[i] = home(from[begin + i]);
            prefetch_line(&entries_[homes[i]]);
        }
        for (std::size_t i = 0; i < block; ++i) {
            const std::uint64_t id = from[begin + i];
            to[begin + i] = find(homes[i], id).count != 0 ? id : other;
        }
    }
}

}  // namespace persia
