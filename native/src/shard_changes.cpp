// Shard's changes since they were last asked for.
#include "persia/prefetch.h"
#include "persia/shard.h"
#include "persia/storage.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 16;  // keys whose memory is asked for before they are looked at

}  // namespace

// Rows that push() will find as they were pulled; a gradient that is skipped changes none, but is rare.
void Shard::note_pushed(const PushBatch& batch) {
    const bool epochs = batch.epoch < removed_at_;
    for (std::size_t i = 0; i < batch.keys.size(); ++i) {
        const std::uint32_t slot = batch.slots[i];
        if (slot == kNoSlot || (epochs && rows_.epoch(slot) > batch.epoch)) continue;
        changes_.changed(batch.keys[i], slot);
    }
}

void Shard::take_changes(RowFormat format, ChangedRows& into) {
    const auto [keys, removed] = changes_.take();
    const std::size_t dim = config_.dim, row_bytes = bytes_of(format, dim);
    std::vector<std::uint32_t> slots;
    std::vector<Key> missing;
    slots.reserve(keys.size());
    into.keys.reserve(into.keys.size() + keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (i + kAhead < keys.size()) {
            prefetch_cold_line(index_.home_line(bucket(keys[i + kAhead]), keys[i + kAhead]));
        }
        const KeyIndex::Entry entry = index_.find(bucket(keys[i]), keys[i]);
        if (!entry) {  // it is among those that went, or on disk
            if (cold_) missing.push_back(keys[i]);
            continue;
        }
        slots.push_back(entry.slot());
        into.keys.push_back(keys[i]);
    }
    std::size_t at = into.rows.size();
    into.rows.resize(at + slots.size() * row_bytes);
    for (std::size_t i = 0; i < slots.size(); ++i, at += row_bytes) {
        if (i + kAhead < slots.size()) {
            prefetch_cold_lines(rows_.weights(slots[i + kAhead]), rows_.weight_lines());
        }
        load(update_.weights(), rows_.weights(slots[i]), room_.data(), dim);
        encode_row(format, room_.data(), into.rows.data() + at, dim);
    }
    if (!missing.empty()) cold_changes(missing, format, into);
    into.removed.insert(into.removed.end(), removed.begin(), removed.end());
}

void Shard::return_changes(Keys changed, Keys removed) {
    for (const Key key : changed) {
        if (!owns(key)) continue;
        const KeyIndex::Entry entry = index_.find(bucket(key), key);
        if (entry) {
            changes_.changed(key, entry.slot());
        } else if (cold_) {
            changes_.changed_before(key);
        }
    }
    for (const Key key : removed) {
        if (owns(key)) changes_.removed_before(key);
    }
}

}  // namespace persia
