// Shard's changes since they were last asked for.
#include <algorithm>

#include "persia/prefetch.h"
#include "persia/shard.h"
#include "persia/storage.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 16;  // rows whose memory is asked for before they are looked at
constexpr std::size_t kBlock = 64;  // rows whose memory is asked for together

}  // namespace

void Shard::copy_changed(Keys keys, const std::byte* const* weights) {
    const std::size_t at = copied_.rows.size();
    copied_.keys.insert(copied_.keys.end(), keys.begin(), keys.end());
    copied_.rows.resize(at + keys.size() * copied_.row_bytes);
    encode_served(copied_format_, update_.weights(), weights, keys.size(), config_.dim, changed_room_.data(),
                  copied_.rows.data() + at);
}

void Shard::keep_changed(Key key, std::uint32_t slot) {
    if (!changes_.copied(slot)) return;
    const std::byte* const weights = rows_.weights(slot);
    copy_changed({&key, 1}, &weights);
}

// Rows that push() will find as they were pulled; a gradient that is skipped changes none, but is rare.
void Shard::note_pushed(const PushBatch& batch) {
    const bool epochs = batch.epoch < removed_at_, waiting = !changes_.to_copy().empty();
    const std::size_t n = batch.keys.size();
    if (!epochs && !waiting) return changes_.changed(batch.keys, batch.slots, rows_.end_slot());
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
        ChangedRows left;
        copy_changes(changes_.to_copy().size());
        take_changes(left);
        return_changes(left.keys, left.removed);
    }
    copied_.removed = changes_.mark();
    copied_.row_bytes = bytes_of(format, config_.dim);
    copied_format_ = format;
    changed_room_.resize(config_.dim);
    if (cold_) copy_away();
}

// From the end: of two rows with one slot the later one is in it.
bool Shard::copy_changes(std::size_t most) {
    std::vector<Changes::Row>& rows = changes_.to_copy();
    const std::size_t end = rows.size() - std::min(most, rows.size());
    Key keys[kBlock];
    const std::byte* weights[kBlock];
    for (std::size_t i = rows.size(); i > end;) {
        std::size_t n = 0;
        for (; i > end && n < kBlock; --i) {
            const auto [key, slot] = rows[i - 1];
            if (!changes_.copied(slot)) continue;
            keys[n] = key;
            weights[n] = rows_.weights(slot);
            prefetch_cold_lines(weights[n], rows_.weight_lines());
            ++n;
        }
        copy_changed({keys, n}, weights);
    }
    rows.resize(end);
    return end != 0;
}

// Keeps its memory for what is copied next.
void Shard::take_changes(ChangedRows& to) {
    const auto move = [](auto& into, auto& from) {
        into.insert(into.end(), from.begin(), from.end());
        from.clear();
    };
    move(to.keys, copied_.keys);
    move(to.rows, copied_.rows);
    move(to.removed, copied_.removed);
    to.row_bytes = copied_.row_bytes;
}

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
