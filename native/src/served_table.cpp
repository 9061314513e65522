#include "persia/served_table.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "persia/prefetch.h"

namespace persia {
namespace {

constexpr std::size_t kBlock = 32;  // keys that go through one stage after the other together
constexpr std::size_t kAhead = 16;
const std::byte kGoneRow{};
const std::byte* const kGone = &kGoneRow;

}  // namespace

std::uint32_t cell_shift(Span<const Key> keys) {
    std::uint32_t shift = 0;
    if (keys.empty()) return shift;
    const Key width = keys[keys.size() - 1] - keys[0];
    while (shift < 63 && (width >> shift) >= keys.size() / 2 + 1) ++shift;
    return shift;
}

std::vector<std::uint32_t> cells_of(Span<const Key> keys, std::uint32_t shift) {
    if (keys.empty()) return {0};
    std::vector<std::uint32_t> cells(((keys[keys.size() - 1] - keys[0]) >> shift) + 2);
    for (std::size_t i = 0; i < keys.size(); ++i) ++cells[((keys[i] - keys[0]) >> shift) + 1];
    for (std::size_t c = 1; c < cells.size(); ++c) cells[c] += cells[c - 1];
    return cells;
}

void ServedTable::add_part(const ServedPart& part) {
    const std::size_t n = part.keys.size(), num_cells = part.cells.size();
    bool good = num_cells > 0 && part.cells[0] == 0 && part.cells[num_cells - 1] == n && part.shift < 64;
    for (std::size_t c = 1; good && c < num_cells; ++c) good = part.cells[c - 1] <= part.cells[c];
    if (n != 0) {
        good = good && part.keys[0] <= part.keys[n - 1] &&
               ((part.keys[n - 1] - part.keys[0]) >> part.shift) + 2 == num_cells;
    }
    if (!good) throw std::invalid_argument("cells: they don't fit the keys");
    if (n == 0) return;
    const auto at = std::upper_bound(parts_.begin(), parts_.end(), part.keys[0],
                                     [](Key key, const ServedPart& p) { return key < p.keys[0]; });
    const bool after = at == parts_.begin() || (at - 1)->keys[(at - 1)->keys.size() - 1] < part.keys[0];
    if (!after || (at != parts_.end() && at->keys[0] <= part.keys[n - 1])) {
        throw std::invalid_argument("keys: they overlap those of another part");
    }
    parts_.insert(at, part);
}

void ServedTable::grow(std::size_t more) {
    std::size_t size = std::max<std::size_t>(entries_.size(), 64);
    while (size * 2 < (used_ + more) * 3) size *= 2;
    if (size == entries_.size()) return;
    std::vector<Entry> old(size, Entry{0, nullptr});
    old.swap(entries_);
    mask_ = size - 1;
    used_ = 0;
    for (const Entry& entry : old) {
        if (entry.row != nullptr) set(entry.key, entry.row);
    }
}

void ServedTable::set(Key key, const std::byte* row) {
    Entry& entry = *const_cast<Entry*>(entry_of(key));
    used_ += entry.row == nullptr;
    entry = {key, row};
}

void ServedTable::add_changes(Keys keys, const std::byte* rows, Keys removed) {
    grow(keys.size() + removed.size());
    for (std::size_t i = 0; i < removed.size(); ++i) {
        if (i + kAhead < removed.size()) prefetch_cold_line(&entries_[home(removed[i + kAhead])]);
        set(removed[i], kGone);
    }
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (i + kAhead < keys.size()) prefetch_cold_line(&entries_[home(keys[i + kAhead])]);
        set(keys[i], rows + i * row_bytes_);
    }
}

const ServedPart* ServedTable::part_of(Key key) const {
    const auto at = std::upper_bound(parts_.begin(), parts_.end(), key,
                                     [](Key k, const ServedPart& p) { return k < p.keys[0]; });
    if (at == parts_.begin()) return nullptr;
    const ServedPart& part = *(at - 1);
    return key <= part.keys[part.keys.size() - 1] ? &part : nullptr;
}

// use(i, row) for each key, in order; null for a row that isn't there. Each stage asks for the memory that
// the next one needs.
template <class Use>
void ServedTable::find(Keys keys, const Use& use) const {
    struct Search {
        const ServedPart* part;
        const std::uint32_t* cell;
        const std::byte* row;
    };
    Search searches[kBlock];
    const bool changed = !entries_.empty();
    for (std::size_t begin = 0; begin < keys.size(); begin += kBlock) {
        const std::size_t count = std::min(kBlock, keys.size() - begin);
        const Keys block = keys.slice(begin, begin + count);
        for (std::size_t i = 0; i < count; ++i) {
            if (changed) prefetch_line(&entries_[home(block[i])]);
            Search& search = searches[i];
            search = {part_of(block[i]), nullptr, nullptr};
            if (search.part == nullptr) continue;
            search.cell = &search.part->cells[(block[i] - search.part->keys[0]) >> search.part->shift];
            prefetch_line(search.cell);
        }
        for (std::size_t i = 0; i < count; ++i) {
            Search& search = searches[i];
            if (changed) search.row = entry_of(block[i])->row;
            if (search.row == nullptr && search.cell != nullptr) {
                prefetch_line(search.part->keys.data() + *search.cell);
            } else if (search.row != nullptr) {
                prefetch(search.row == kGone ? &kGoneRow : search.row, search.row == kGone ? 1 : row_bytes_);
            }
        }
        for (std::size_t i = 0; i < count; ++i) {
            Search& search = searches[i];
            if (search.row != nullptr || search.cell == nullptr) continue;
            const ServedPart& part = *search.part;
            for (std::uint32_t at = search.cell[0]; at < search.cell[1] && part.keys[at] <= block[i]; ++at) {
                if (part.keys[at] != block[i]) continue;
                search.row = part.rows + at * row_bytes_;
                prefetch(search.row, row_bytes_);
            }
        }
        for (std::size_t i = 0; i < count; ++i) {
            use(begin + i, searches[i].row == kGone ? nullptr : searches[i].row);
        }
    }
}

void ServedTable::lookup(Keys keys, float* out) const {
    find(keys, [&](std::size_t i, const std::byte* row) {
        float* const to = out + i * dim_;
        if (row == nullptr) {
            std::fill_n(to, dim_, 0.0f);
        } else {
            decode_row(format_, row, to, dim_);
        }
    });
}

void ServedTable::copy(Keys keys, std::byte* out) const {
    find(keys, [&](std::size_t i, const std::byte* row) {
        if (row == nullptr) {
            throw std::invalid_argument("keys[" + std::to_string(i) + "] = " + std::to_string(keys[i]) +
                                        " isn't there");
        }
        std::memcpy(out + i * row_bytes_, row, row_bytes_);
    });
}

std::vector<Key> ServedTable::keys() const {
    std::vector<Entry> changes;
    for (const Entry& entry : entries_) {
        if (entry.row != nullptr) changes.push_back(entry);
    }
    std::sort(changes.begin(), changes.end(), [](const Entry& a, const Entry& b) { return a.key < b.key; });
    std::vector<Key> keys;
    std::size_t size = changes.size();
    for (const ServedPart& part : parts_) size += part.keys.size();
    keys.reserve(size);
    auto next = changes.begin();
    const auto add_until = [&](Key end, bool last) {  // changes below `end`, and that key's own
        for (; next != changes.end() && (last || next->key <= end); ++next) {
            if (next->row != kGone) keys.push_back(next->key);
        }
    };
    for (const ServedPart& part : parts_) {
        for (const Key key : part.keys) {
            const auto before = next;
            add_until(key, false);
            if (next == before || (next - 1)->key != key) keys.push_back(key);
        }
    }
    add_until(0, true);
    return keys;
}

}  // namespace persia
