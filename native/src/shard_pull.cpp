// Shard's pulls and look-ups.
#include <algorithm>

#include "persia/prefetch.h"
#include "persia/shard.h"
#include "persia/wire.h"
#include "walk_wide.h"

namespace persia {
namespace {

// Keys are worked on in blocks, one stage after the other, each stage asking for the memory that a later one
// needs. A stage per loop and not per key: where address translations miss, a prefetch waits for its own, and
// only a short loop has many of them under way at a time. Rows of all blocks must stay in the first cache.
constexpr std::size_t kBlock = 8;
// Keys that aren't in their home line, one in six, wait until the others of their part are done: which they
// are nobody can guess, so a loop over them in each block would be left at a wrong time, again and again.
// Home lines of a part must stay in the second cache.
constexpr std::size_t kPart = 1024;

// With fewer keys in a call, eight at a time wait for the last of their lines, with nothing else to do.
constexpr std::size_t kFewestWide = 128;

// 0 for 0, else all bits; hidden from the compiler, which might make a branch of what is done with it.
inline std::uint32_t all_ones(std::uint32_t value) {
    std::uint32_t mask = 0u - static_cast<std::uint32_t>(value != 0);
    asm("" : "+r"(mask));
    return mask;
}

}  // namespace

// The slot of a key's row, made if it must be; kNoSlot if it may not. fresh: start_row() must follow.
std::uint32_t Shard::resolve(Key key, std::uint32_t step, bool& fresh) {
    const std::uint32_t home = bucket(key);
    const KeyIndex::Entry entry = index_.find(home, key);
    fresh = false;
    if (entry) {
        if (eviction_.expired(entry.stamp(), step)) {
            ++counts_.evicted;
            ++counts_.created;
            removed_at_ = epoch_;
            fresh = true;
            if (changes_.noted()) {
                keep_changed(key, entry.slot());
                changes_.removed(key, entry.slot());
            }
        }
        eviction_.used(home, key, step, entry.stamp());
        return entry.slot();
    }
    if (!admission_.admits(home, key, step)) return kNoSlot;
    index_.reserve_one(home, arena_);
    const std::uint32_t slot = rows_.take(arena_);
    if (snapshot_.active()) snapshot_.settle(slot);  // it may be one that held another row at the mark
    insert(home, key, slot, eviction_.first(home, key, step));
    eviction_.came(home, key, step, index_);
    ++counts_.created;
    fresh = true;
    return slot;
}

void Shard::start_row(Key key, std::uint32_t slot) {
    init_.fill(key, room_.data(), config_.dim);
    rows_.epoch(slot) = epoch_;
    if (changes_.noted()) changes_.created(key);
    update_.init(room_.data(), rows_.weights(slot), rows_.state(slot));
}

template <class Touch, class Use>
inline std::size_t Shard::walk_homes(const Keys keys, const Span<std::uint32_t> slots,
                                     std::uint32_t* const rest, const Touch& touch, const Use& use) const {
    // A block is looked up, so many blocks later matched, and so on: until then its memory has come.
    constexpr std::size_t kMatch = 3, kUse = 7, kBlocks = 8;
    struct Block {
        IndexLine* lines[kBlock];
        const std::byte* rows[kBlock];
    };
    Block blocks[kBlocks];
    // Copies, which stores to `slots` can't change, so that the compiler may keep them in registers.
    const BucketOf bucket_of = bucket_of_;
    const std::uint32_t first_bucket = config_.first_bucket;
    const KeyIndex::HomeLines home_line(index_);
    const RowStore::Weights weights(rows_);
    const std::size_t row_lines = rows_.weight_lines();
    std::size_t num_rest = 0;
    const auto look_up = [&](Block& block, std::size_t i) {
        const Key key = keys[i];
        IndexLine* const line = home_line(bucket_of(key) - first_bucket, key);
        block.lines[i % kBlock] = line;
        prefetch_cold_line(line);
    };
    // Without branches that depend on a key: each wrong guess would wait for memory.
    const auto match = [&](Block& block, std::size_t i) {
        const Key key = keys[i];
        IndexLine* const line = block.lines[i % kBlock];
        const unsigned mask = line->matches(key);
        const auto entry = static_cast<unsigned>(__builtin_ctz(mask | 1u << (IndexLine::kEntries - 1)));
        const std::uint32_t slot = line->slots[entry];
        const std::uint32_t here = touch(key, *line, entry, all_ones(mask) & all_ones(slot));
        slots[i] = slot - 1;
        const std::byte* const row = weights((slot - 1) & here);  // of slot 0 for the rest
        block.rows[i % kBlock] = row;
        prefetch_cold_lines(row, row_lines);
        rest[num_rest] = static_cast<std::uint32_t>(i);
        num_rest += 1 + here;
    };
    const std::size_t n = keys.size(), num_blocks = (n + kBlock - 1) / kBlock;
    for (std::size_t ahead = 0; ahead < num_blocks + kUse; ++ahead) {
        // Calls work(block, begin, end) for the block that so many are ahead of. Nearly all blocks are full.
        const auto stage = [&](std::size_t behind, const auto& work) {
            const std::size_t number = ahead - behind;  // below 0: huge
            if (number >= num_blocks) return;
            const std::size_t begin = number * kBlock;
            Block& block = blocks[number % kBlocks];
            if (n - begin >= kBlock) {
                work(block, begin, begin + kBlock);
            } else {
                work(block, begin, n);
            }
        };
        stage(0, [&](Block& block, std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i) look_up(block, i);
        });
        stage(kUse,
              [&](Block& block, std::size_t begin, std::size_t end) { use(begin, block.rows, end - begin); });
        stage(kMatch, [&](Block& block, std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i) match(block, i);
        });
    }
    return num_rest;
}

template <class Touch, class Resolve, class UseRest>
void Shard::walk_rest(const Keys keys, const Span<std::uint32_t> slots, const Span<const std::uint32_t> rest,
                      const Touch& touch, const Resolve& resolve, const UseRest& use_rest) const {
    constexpr std::size_t kMatch = 16, kUse = 32, kSize = 64;
    struct {
        IndexLine* line;
        const std::byte* row;
        bool fresh;
    } under_way[kSize];
    const std::size_t row_lines = rows_.weight_lines(), n = rest.size();
    for (std::size_t ahead = 0; ahead < n + kUse; ++ahead) {
        if (ahead < n) {
            const Key key = keys[rest[ahead]];
            IndexLine* const line = index_.second_line(bucket(key), key, index_.home_line(bucket(key), key));
            under_way[ahead % kSize].line = line;
            if (line != nullptr) prefetch_cold_line(line);
        }
        if (ahead - kMatch < n) {
            auto& now = under_way[(ahead - kMatch) % kSize];
            const std::size_t i = rest[ahead - kMatch];
            const Key key = keys[i];
            now.fresh = false;
            std::uint32_t here = 0;
            if (now.line != nullptr) {
                const unsigned mask = now.line->matches(key);
                const auto at = static_cast<unsigned>(__builtin_ctz(mask | 1u << (IndexLine::kEntries - 1)));
                slots[i] = now.line->slots[at] - 1;
                here = touch(key, *now.line, at, all_ones(mask) & all_ones(now.line->slots[at]));
            }
            if (here == 0) slots[i] = resolve(key, now.fresh);
            now.row = slots[i] != kNoSlot ? rows_.weights(slots[i]) : nullptr;
            prefetch_cold_lines(now.row, row_lines);
        }
        if (ahead - kUse < n) {
            const auto& now = under_way[(ahead - kUse) % kSize];
            use_rest(rest[ahead - kUse], now.row, now.fresh);
        }
    }
}

template <class Touch, class Resolve, class Use, class Bring, class UseRest>
inline void Shard::walk(const Keys keys, const Span<std::uint32_t> slots, const Touch& touch,
                        const Resolve& resolve, const Use& use, const Bring& bring,
                        const UseRest& use_rest) const {
    std::uint32_t rest[kPart + kEight];
    for (std::size_t begin = 0; begin < keys.size(); begin += kPart) {
        const std::size_t end = std::min(begin + kPart, keys.size());
        const Keys part = keys.slice(begin, end);
        const Span<std::uint32_t> part_slots = slots.slice(begin, end);
        const auto use_homes = [&](std::size_t at, const std::byte* const* rows, std::size_t count) {
            use(begin + at, rows, count);
        };
        const auto use_others = [&](std::size_t at, const std::byte* row, bool fresh) {
            use_rest(begin + at, row, fresh);
        };
#ifdef PERSIA_WIDE
        if constexpr (kWideTouch<Touch>) {
            if (use_wide && keys.size() >= kFewestWide) {
                const std::size_t num_rest = walk_homes_wide(part, part_slots, rest, touch, use_homes);
                bring(part, {rest, num_rest});
                walk_rest_wide(part, part_slots, {rest, num_rest}, touch, resolve, use_others);
                continue;
            }
        }
#endif
        const std::size_t num_rest = walk_homes(part, part_slots, rest, touch, use_homes);
        bring(part, {rest, num_rest});
        walk_rest(part, part_slots, {rest, num_rest}, touch, resolve, use_others);
    }
}

void Shard::pull(Keys keys, std::uint32_t step, Rows out, Span<std::uint32_t> slots,
                 Span<const std::uint8_t> wanted) {
    const std::size_t row_bytes = wire_bytes(out.wire, config_.dim);
    const EncodeRows encode = encode_rows(update_.weights(), out.wire, config_.dim);
    std::byte* to = out.data;
    std::size_t counted = 0, place = 0;  // keys before `counted` have so many rows that are wanted
    if (snapshot_.active()) keep_before_change(keys);
    const auto pull_with = [&](const auto& touch) {
        walk(
            keys, slots, touch, [&](Key key, bool& fresh) { return resolve(key, step, fresh); },
            [&](std::size_t begin, const std::byte* const* rows, std::size_t count) {
                if (wanted.empty()) {
                    encode(rows, count, config_.dim, room_.data(), out.data + begin * row_bytes);
                    return;
                }
                const std::byte* chosen[kBlock];
                std::size_t num_chosen = 0;
                for (std::size_t i = 0; i < count; ++i) {
                    chosen[num_chosen] = rows[i];
                    num_chosen += wanted[begin + i] != 0;
                }
                encode(chosen, num_chosen, config_.dim, room_.data(), to);
                to += num_chosen * row_bytes;
            },
            [&](Keys part, Span<const std::uint32_t> rest) {
                if (cold_) fetch(part, rest, step);
            },
            [&](std::size_t i, const std::byte* row, bool fresh) {
                if (fresh) start_row(keys[i], slots[i]);
                if (!wanted.empty()) {
                    if (wanted[i] == 0) return;
                    for (; counted < i; ++counted) place += wanted[counted] != 0;
                }
                encode(&row, 1, config_.dim, room_.data(),
                       out.data + (wanted.empty() ? i : place) * row_bytes);
            });
    };
    if (eviction_.plain(step)) {
        pull_with(RaiseStamp{step});
    } else {
        pull_with([&, step](Key key, IndexLine& line, unsigned at, std::uint32_t here) {
            if (here != 0) {
                if (eviction_.expired(line.stamps[at], step)) return 0u;
                eviction_.used(bucket(key), key, step, line.stamps[at]);
            }
            return here;
        });
    }
    if (notes_uses_) note_used(slots, step);
}

void Shard::lookup(Keys keys, Rows out, Span<std::uint32_t> slots) const {
    const std::size_t row_bytes = wire_bytes(out.wire, config_.dim);
    const EncodeRows encode = encode_rows(update_.weights(), out.wire, config_.dim);
    slots_.resize(keys.size());
    const bool initial = !slots.empty() && admission_.always();  // else most of them give zeros
    const auto look_up_with = [&](const auto& touch) {
        walk(
            keys, slots_, touch,
            [&](Key key, bool&) {
                const KeyIndex::Entry entry = index_.find(bucket(key), key);
                return entry && !eviction_.expired(entry.stamp(), next_step_) ? entry.slot() : kNoSlot;
            },
            [&](std::size_t begin, const std::byte* const* rows, std::size_t count) {
                encode(rows, count, config_.dim, room_.data(), out.data + begin * row_bytes);
            },
            [](Keys, Span<const std::uint32_t>) {},
            [&](std::size_t i, const std::byte* row, bool) {
                if (row == nullptr && initial) {
                    first_.resize(update_.weight_bytes());
                    init_.fill(keys[i], room_.data(), config_.dim);
                    store_nearest(update_.weights(), room_.data(), first_.data(), config_.dim);
                    row = first_.data();
                }
                encode(&row, 1, config_.dim, room_.data(), out.data + i * row_bytes);
            });
    };
    if (eviction_.ttl() == 0) {
        look_up_with(LeaveStamp{});
    } else {
        look_up_with([&](Key, const IndexLine& line, unsigned at, std::uint32_t here) {
            return eviction_.expired(line.stamps[at], next_step_) ? 0u : here;
        });
    }
    if (cold_) lookup_cold(keys, out);
    if (!slots.empty()) std::copy(slots_.begin(), slots_.end(), slots.begin());
}

}  // namespace persia
