// Shard's pull of keys whose rows were looked up, and sent, some steps before.
#include <algorithm>

#include "look_wide.h"
#include "persia/prefetch.h"
#include "persia/shard.h"
#include "persia/wire.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 32;  // keys whose memory is asked for before they are looked at
constexpr std::size_t kBlock = 8;   // rows that are encoded at a time

inline std::uint32_t all_ones_if(bool value) { return 0u - static_cast<std::uint32_t>(value); }

// In blocks, for which a stage per loop asks for memory ahead, as in shard_pull.cpp.
std::size_t look_in_homes_one_by_one(const KeyIndex::HomeLines& home_line, const BucketOf bucket_of,
                                     const std::uint32_t first_bucket, const SecondLook look, const Keys keys,
                                     const Span<std::uint32_t> slots, const Span<std::uint8_t> differs,
                                     std::uint32_t* const rest) {
    constexpr std::size_t kBehind = 4, kLines = 8 * kBlock;
    IndexLine* lines[kLines];
    const std::size_t n = keys.size(), num_blocks = (n + kBlock - 1) / kBlock;
    std::size_t num_rest = 0;
    for (std::size_t block = 0; block < num_blocks + kBehind; ++block) {
        if (block < num_blocks) {
            for (std::size_t i = block * kBlock; i < std::min(n, (block + 1) * kBlock); ++i) {
                lines[i % kLines] = home_line(bucket_of(keys[i]) - first_bucket, keys[i]);
                prefetch_cold_line(lines[i % kLines]);
            }
        }
        if (block < kBehind) continue;
        for (std::size_t i = (block - kBehind) * kBlock; i < std::min(n, (block - kBehind + 1) * kBlock);
             ++i) {
            IndexLine& line = *lines[i % kLines];
            const unsigned mask = line.matches(keys[i]);
            const auto at = static_cast<unsigned>(__builtin_ctz(mask | 1u << (IndexLine::kEntries - 1)));
            const std::uint32_t slot = line.slots[at], stamp = line.stamps[at];
            const std::uint32_t here = all_ones_if(mask != 0) & all_ones_if(slot != 0) &
                                       all_ones_if(slots[i] <= look.most) & all_ones_if(stamp < look.below);
            line.stamps[at] = std::max(stamp, look.raise & here);
            slots[i] = ((slot - 1) & here) | (slots[i] & ~here);
            differs[i] |= static_cast<std::uint8_t>(all_ones_if(stamp > look.since) & here & 1);
            rest[num_rest] = static_cast<std::uint32_t>(i);
            num_rest += 1 & ~here;
        }
    }
    return num_rest;
}

}  // namespace

// Finds rows again, most without a branch that depends on the key; returns how many others `rest_` has.
std::size_t Shard::look_again(const Keys keys, const SecondLook& look, const Span<std::uint32_t> slots,
                              const Span<std::uint8_t> differs) {
    const KeyIndex::HomeLines homes(index_);
    const BucketOf bucket_of = bucket_of_;
    const std::uint32_t first = config_.first_bucket;
    rest_.resize(keys.size() + kBlock);  // more, so that places may be written before they are known to count
    std::uint32_t* const rest = rest_.data();
#ifdef PERSIA_WIDE
    if (use_wide && look.below != 0) {
        const std::size_t count = look_in_homes(homes, bucket_of, first, look, keys, slots, differs, rest);
        return look_in_seconds(homes, bucket_of, first, look, keys, slots, differs, rest, count);
    }
#endif
    return look_in_homes_one_by_one(homes, bucket_of, first, look, keys, slots, differs, rest);
}

void Shard::ask_for_second_line(Key key) const {
    const std::uint32_t home = bucket(key);
    const IndexLine* const line = index_.second_line(home, key, index_.home_line(home, key));
    if (line != nullptr) prefetch_cold_line(line);
}

// With lru a row's stamp is the last step that pulled it, and only steps that pulled it change it. So a row
// whose stamp is at most `since` is what it was then. Where stamps count, the same is noted beside them.
void Shard::mark_differing(Keys keys, std::uint32_t since, std::uint32_t used_by, Span<std::uint32_t> slots,
                           Span<std::uint8_t> differs) {
    const std::size_t n = keys.size();
    used_by &= all_ones_if(decides_by_stamps());
    const std::uint32_t below = all_ones_if(!eviction_.lfu());
    const std::size_t num_rest = look_again(keys, {UINT32_MAX, below, used_by, since}, slots, differs);
    for (std::size_t ahead = 0; ahead < num_rest + kAhead; ++ahead) {
        if (ahead < num_rest) ask_for_second_line(keys[rest_[ahead]]);
        if (ahead < kAhead) continue;
        const std::uint32_t i = rest_[ahead - kAhead];
        if (const KeyIndex::Entry entry = index_.find(bucket(keys[i]), keys[i])) {
            slots[i] = entry.slot();
            if (eviction_.lfu()) {
                differs[i] = slots[i] < last_used_.size() && last_used_[slots[i]] > since;
            } else {
                differs[i] = entry.stamp() > since;
                entry.stamp() = std::max(entry.stamp(), used_by);
            }
        } else if (slots[i] < kOnDisk) {  // it was here, and has gone
            differs[i] = 1;
            slots[i] = kNoSlot;
        }
    }
    if (!decides_by_stamps() || cold_ || !admission_.always()) return;  // never calm()
    // A bit for a few slots: with more than are marked, updates are only made a little sooner. Of a size that
    // stays in the first cache.
    if (marked_.empty()) {
        std::size_t size = 4;
        while (size * 8 < n) size *= 2;
        marked_.resize(size);
    }
    std::uint64_t* const marked = marked_.data();
    const std::size_t last = marked_.size() - 1;
    for (std::size_t i = 0; i < n; ++i) {  // without a branch that depends on the row
        marked[slots[i] / 64 & last] |= std::uint64_t{differs[i]} << slots[i] % 64;
    }
}

bool Shard::calm() const {
    return decides_by_stamps() && !cold_ && admission_.always() && dirty_.empty() && !snapshot_.active() &&
           !changes_.noted();
}

void Shard::pull_again(Keys keys, std::uint32_t step, std::uint32_t since, bool noted,
                       Span<std::uint32_t> slots, Span<std::uint8_t> differs) {
    const std::size_t n = keys.size();
    if (cold_) fetch(keys, step);
    if (snapshot_.active()) keep_before_change(keys);
    std::size_t num_rest = 0;
    if (noted) {
        rest_.resize(n + 1);
        for (std::size_t i = 0; i < n; ++i) {
            rest_[num_rest] = static_cast<std::uint32_t>(i);
            num_rest += slots[i] == kNoSlot;
        }
    } else {
        // Unless no row has gone since the mark, another pull of this step may have begun it anew.
        const std::uint32_t below =
            eviction_.plain(step) ? step + static_cast<std::uint32_t>(removed_at_ < epoch_) : 0;
        num_rest = look_again(keys, {kOnDisk - 1, below, step, UINT32_MAX}, slots, differs);
    }
    const bool always = admission_.always();
    for (std::size_t ahead = 0; ahead < num_rest + kAhead; ++ahead) {
        if (ahead < num_rest) ask_for_second_line(keys[rest_[ahead]]);
        if (ahead < kAhead) continue;
        const std::uint32_t i = rest_[ahead - kAhead], before = slots[i];
        if (const KeyIndex::Entry entry = index_.find(bucket(keys[i]), keys[i])) {
            bool same = true;
            if (before == kNoSlot) {  // another pull of this step has begun it; or it was on disk
                same = always && !cold_;
            } else if (before == kOnDisk) {
                same = !eviction_.lfu() && entry.stamp() <= since;
            } else if (eviction_.lfu() || entry.stamp() >= step) {  // has one begun it after it went?
                same = rows_.epoch(entry.slot()) < epoch_;
            }
            differs[i] |= static_cast<std::uint8_t>(!same);
        }
        bool fresh = false;
        slots[i] = resolve(keys[i], step, fresh);
        if (fresh) start_row(keys[i], slots[i]);
        if (fresh || slots[i] == kNoSlot) {
            const bool same = before == kNoSlot && (always || slots[i] == kNoSlot);
            differs[i] |= static_cast<std::uint8_t>(!same);
        }
    }
    if (notes_uses_) note_used(slots, step);
}

void Shard::encode_differing(Span<const std::uint32_t> slots, Span<const std::uint8_t> differs,
                             std::uint32_t first, std::uint32_t* positions, Rows out) {
    rest_.resize(slots.size() + 1);
    std::size_t count = 0;
    for (std::size_t i = 0; i < slots.size(); ++i) {
        rest_[count] = static_cast<std::uint32_t>(i);
        count += differs[i];
    }
    const std::size_t row_bytes = wire_bytes(out.wire, config_.dim), row_lines = rows_.weight_lines();
    const EncodeRows encode = encode_rows(update_.weights(), out.wire, config_.dim);
    const auto row_at = [&](std::size_t k) -> const std::byte* {
        const std::uint32_t slot = slots[rest_[k]];
        return slot != kNoSlot ? rows_.weights(slot) : nullptr;
    };
    const auto ask = [&](std::size_t begin) {
        for (std::size_t k = begin; k < std::min(begin + kBlock, count); ++k) {
            prefetch_cold_lines(row_at(k), row_lines);
        }
    };
    ask(0);
    for (std::size_t begin = 0; begin < count; begin += kBlock) {
        ask(begin + kBlock);
        const std::size_t size = std::min(kBlock, count - begin);
        const std::byte* rows[kBlock];
        for (std::size_t k = 0; k < size; ++k) {
            positions[begin + k] = first + rest_[begin + k];
            rows[k] = row_at(begin + k);
        }
        encode(rows, size, config_.dim, room_.data(), out.data + begin * row_bytes);
    }
}

void Shard::note_used(Span<const std::uint32_t> slots, std::uint32_t step) {
    const std::size_t n = rows_.end_slot();
    if (last_used_.capacity() < n) last_used_.reserve(n + n / 16);  // resize() alone doubles it
    if (last_used_.size() < n) last_used_.resize(n);
    for (const std::uint32_t slot : slots) {
        if (slot != kNoSlot) last_used_[slot] = step;
    }
}

}  // namespace persia
