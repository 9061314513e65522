// Shard's pull of keys whose rows were looked up, and sent, some steps before.
#include <algorithm>
#include <cstring>

#include "persia/prefetch.h"
#include "persia/shard.h"
#include "persia/storage.h"
#include "persia/wire.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 24;  // keys whose memory is asked for before they are looked at

inline std::uint32_t all_ones_if(bool value) { return 0u - static_cast<std::uint32_t>(value); }

}  // namespace

// With lru a row's stamp is the last step that pulled it, and only steps that pulled it change it. So a row
// whose stamp is at most `since` is what it was then, and its memory isn't touched. All others are compared:
// those with a newer stamp, those that came again or are new, and all with other policies.
void Shard::pull_differing(Keys keys, std::uint32_t step, std::uint32_t since, ConstRows before,
                           Span<std::uint32_t> slots, Differing& found) {
    const std::size_t n = keys.size();
    const std::uint32_t plain = all_ones_if(eviction_.plain(step));
    if (cold_) fetch(keys);
    if (snapshot_.active()) keep_before_change(keys);
    compared_.resize(n + 1);  // one more, so that a place may be written before it is known to count
    rest_.resize(n + 1);
    std::size_t num_compared = 0, num_rest = 0;
    {
        IndexLine* lines[kAhead];
        const KeyIndex::HomeLines home_line(index_);
        for (std::size_t ahead = 0; ahead < n + kAhead; ++ahead) {
            IndexLine*& under_way = lines[ahead % kAhead];
            if (ahead >= kAhead) {
                const std::size_t i = ahead - kAhead;
                IndexLine& line = *under_way;
                const unsigned mask = line.matches(keys[i]);
                const auto at = static_cast<unsigned>(__builtin_ctz(mask | 1u << (IndexLine::kEntries - 1)));
                const std::uint32_t slot = line.slots[at], stamp = line.stamps[at];
                const std::uint32_t here = all_ones_if(mask != 0) & all_ones_if(slot != 0) & plain;
                line.stamps[at] = stamp + ((std::max(step, stamp) - stamp) & here);
                slots[i] = slot - 1;
                compared_[num_compared] = static_cast<std::uint32_t>(i);
                num_compared += here & static_cast<std::uint32_t>(stamp > since);
                rest_[num_rest] = static_cast<std::uint32_t>(i);
                num_rest += 1 & ~here;
            }
            if (ahead < n) {
                under_way = home_line(bucket(keys[ahead]), keys[ahead]);
                prefetch_cold_line(under_way);
            }
        }
    }
    for (std::size_t ahead = 0; ahead < num_rest + kAhead; ++ahead) {
        if (ahead < num_rest) {
            const Key key = keys[rest_[ahead]];
            const std::uint32_t home = bucket(key);
            const IndexLine* line = index_.second_line(home, key, index_.home_line(home, key));
            if (line != nullptr) prefetch_cold_line(line);
        }
        if (ahead < kAhead) continue;
        const std::uint32_t i = rest_[ahead - kAhead];
        const KeyIndex::Entry entry = plain ? index_.find(bucket(keys[i]), keys[i]) : KeyIndex::Entry{};
        compared_[num_compared] = i;
        if (entry) {
            slots[i] = entry.slot();
            num_compared += entry.stamp() > since;
            entry.stamp() = std::max(step, entry.stamp());
            continue;
        }
        bool fresh = false;
        slots[i] = resolve(keys[i], step, fresh);
        if (fresh) start_row(keys[i], slots[i]);
        ++num_compared;
    }
    const std::size_t row_bytes = wire_bytes(before.wire, config_.dim), row_lines = rows_.weight_lines();
    const EncodeRows encode = encode_rows(update_.weights(), before.wire, config_.dim);
    found.positions.resize(num_compared);
    found.rows.resize(num_compared * row_bytes);
    std::size_t size = 0;
    for (std::size_t ahead = 0; ahead < num_compared + kAhead; ++ahead) {
        if (ahead < num_compared) {
            const std::uint32_t i = compared_[ahead], slot = slots[i];
            if (slot != kNoSlot) prefetch_cold_lines(rows_.weights(slot), row_lines);
            prefetch_cold(before.data + i * row_bytes, row_bytes);
        }
        if (ahead < kAhead) continue;
        const std::uint32_t i = compared_[ahead - kAhead];
        const std::byte* const row = slots[i] != kNoSlot ? rows_.weights(slots[i]) : nullptr;
        std::byte* const out = found.rows.data() + size * row_bytes;
        encode(&row, 1, config_.dim, room_.data(), out);
        found.positions[size] = i;
        size += std::memcmp(out, before.data + i * row_bytes, row_bytes) != 0;
    }
    found.positions.resize(size);
    found.rows.resize(size * row_bytes);
}

}  // namespace persia
