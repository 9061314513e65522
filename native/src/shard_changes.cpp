// Shard's changes since they were last asked for.
#include "persia/prefetch.h"
#include "persia/shard.h"
#include "persia/storage.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 16;  // rows whose memory is asked for before they are looked at

}  // namespace

void Shard::copy_changed(Key key, const std::byte* weights) {
    const std::size_t at = copied_.rows.size();
    copied_.keys.push_back(key);
    copied_.rows.resize(at + copied_.row_bytes);
    load(update_.weights(), weights, changed_room_.data(), config_.dim);
    encode_row(copied_format_, changed_room_.data(), copied_.rows.data() + at, config_.dim);
}

void Shard::keep_changed(Key key, std::uint32_t slot) {
    if (changes_.copied(slot)) copy_changed(key, rows_.weights(slot));
}

// Rows that push() will find as they were pulled; a gradient that is skipped changes none, but is rare.
void Shard::note_pushed(const PushBatch& batch) {
    const bool epochs = batch.epoch < removed_at_, waiting = !changes_.to_copy().empty();
    const std::size_t n = batch.keys.size();
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint32_t slot = batch.slots[i];
        if (waiting && i + kAhead < n) {
            const std::uint32_t later = batch.slots[i + kAhead];
            if (changes_.waits(later)) prefetch_cold_lines(rows_.weights(later), rows_.weight_lines());
        }
        if (slot == kNoSlot || (epochs && rows_.epoch(slot) > batch.epoch)) continue;
        if (waiting) keep_changed(batch.keys[i], slot);
        changes_.changed(batch.keys[i], slot);
    }
}

void Shard::mark_changes(RowFormat format) {
    if (!changes_.to_copy().empty() || !copied_.keys.empty() || !copied_.removed.empty()) {
        // Nobody took what was marked before.
        copy_changes(changes_.to_copy().size());
        const ChangedRows left = take_changes();
        return_changes(left.keys, left.removed);
    }
    copied_.removed = changes_.mark();
    copied_.row_bytes = bytes_of(format, config_.dim);
    copied_format_ = format;
    changed_room_.resize(config_.dim);
    const std::size_t n = changes_.to_copy().size();
    copied_.keys.reserve(n);
    copied_.rows.reserve(n * copied_.row_bytes);
    if (cold_) copy_away();
}

// From the end: of two rows with one slot the later one is in it.
bool Shard::copy_changes(std::size_t most) {
    std::vector<Changes::Row>& rows = changes_.to_copy();
    for (; most > 0 && !rows.empty(); --most, rows.pop_back()) {
        if (rows.size() > kAhead) {
            const std::uint32_t later = rows[rows.size() - 1 - kAhead].slot;
            if (changes_.waits(later)) prefetch_cold_lines(rows_.weights(later), rows_.weight_lines());
        }
        keep_changed(rows.back().key, rows.back().slot);
    }
    return !rows.empty();
}

ChangedRows Shard::take_changes() { return std::exchange(copied_, {}); }

void Shard::return_changes(Keys changed, Keys removed) {
    for (const Key key : changed) {
        if (!owns(key)) continue;
        const KeyIndex::Entry entry = index_.find(bucket(key), key);
        if (entry) {
            changes_.changed(key, entry.slot());
        } else if (cold_ && cold_->may_have(bucket(key), key)) {
            away_.insert(key);
        }
    }
    for (const Key key : removed) {
        if (owns(key)) changes_.removed_before(key);
    }
}

}  // namespace persia
