// Shard's pulls and look-ups.
#include <algorithm>

#include "persia/prefetch.h"
#include "persia/shard.h"
#include "persia/wire.h"

namespace persia {
namespace {

// Keys are worked on in blocks, one stage after the other, each stage asking for the memory that a later one
// needs. A stage per loop and not per key: where address translations miss, a prefetch waits for its own, and
// only a short loop has many of them under way at a time. Rows of four blocks must stay in the first cache.
constexpr std::size_t kBlock = 8;

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
        }
        eviction_.used(home, key, step, entry.stamp());
        return entry.slot();
    }
    if (!admission_.admits(home, key, step)) return kNoSlot;
    index_.reserve_one(home, arena_);
    const std::uint32_t slot = rows_.take(arena_);
    if (snapshot_.active()) snapshot_.settle(slot);  // it may be one that held another row at the mark
    insert(home, key, slot, eviction_.first(home, key, step));
    ++counts_.created;
    fresh = true;
    return slot;
}

void Shard::start_row(Key key, std::uint32_t slot) {
    init_.fill(key, room_.data(), config_.dim);
    rows_.epoch(slot) = epoch_;
    update_.init(room_.data(), rows_.weights(slot), rows_.state(slot));
}

struct Shard::Block {
    std::size_t begin;  // of the keys
    unsigned count;
    unsigned num_rest, num_fresh;
    IndexLine* lines[kBlock];
    std::uint32_t found[kBlock];
    const std::byte* rows[kBlock];
    unsigned rest[kBlock];   // keys that are not in their home line
    unsigned fresh[kBlock];  // those whose rows were just made
};

template <class Touch, class Resolve, class Use>
inline void Shard::walk(const Keys keys, const Span<std::uint32_t> slots, const Touch touch,
                        const Resolve resolve, const Use use) const {
    // A block is looked up, so many blocks later matched, and so on: until then its memory has come.
    constexpr std::size_t kMatch = 2, kRows = 3, kRest = 4, kUse = 6, kBlocks = 8;
    Block blocks[kBlocks];
    // Copies, which stores to `slots` can't change, so that the compiler may keep them in registers.
    const BucketOf bucket_of = bucket_of_;
    const std::uint32_t first_bucket = config_.first_bucket;
    const std::size_t row_lines = rows_.weight_lines();
    // Nearly all blocks are full.
    const auto each = [](Block& block, const auto& work) {
        if (block.count == kBlock) {
            for (unsigned i = 0; i < kBlock; ++i) work(block, i);
        } else {
            for (unsigned i = 0; i < block.count; ++i) work(block, i);
        }
    };
    const auto look_up = [&](Block& block, unsigned i) {
        const Key key = keys[block.begin + i];
        IndexLine* const line = index_.home_line(bucket_of(key) - first_bucket, key);
        block.lines[i] = line;
        prefetch_line(line);
    };
    // Without branches that depend on a key: each wrong guess would wait for memory.
    const auto match = [&](Block& block, unsigned i) {
        const Key key = keys[block.begin + i];
        IndexLine* const line = block.lines[i];
        const unsigned mask = line->matches(key);
        const auto entry = static_cast<unsigned>(__builtin_ctz(mask | 1u << (IndexLine::kEntries - 1)));
        const std::uint32_t slot = line->slots[entry];
        const std::uint32_t here = touch(key, *line, entry, all_ones(mask) & all_ones(slot));
        slots[block.begin + i] = slot - 1;
        block.found[i] = (slot - 1) & here;  // else 0, which is not used then
        block.rest[block.num_rest] = i;
        block.num_rest += 1 + here;
    };
    const auto ask_for_row = [&](Block& block, unsigned i) {
        const std::byte* const row = rows_.weights(block.found[i]);
        block.rows[i] = row;
        prefetch_lines(row, row_lines);
    };
    const auto ask_for_second_lines = [&](Block& block) {
        for (unsigned r = 0; r < block.num_rest; ++r) {
            const Key key = keys[block.begin + block.rest[r]];
            const IndexLine* const first = block.lines[block.rest[r]];
            const IndexLine* const second = index_.second_line(bucket_of(key) - first_bucket, key, first);
            if (second != nullptr) prefetch_line(second);
        }
    };
    const auto find_rest = [&](Block& block) {
        block.num_fresh = 0;
        for (unsigned r = 0; r < block.num_rest; ++r) {
            const unsigned i = block.rest[r];
            bool fresh = false;
            const std::uint32_t slot = resolve(keys[block.begin + i], fresh);
            slots[block.begin + i] = slot;
            block.rows[i] = slot != kNoSlot ? rows_.weights(slot) : nullptr;
            if (slot != kNoSlot) prefetch_lines(block.rows[i], row_lines);
            block.fresh[block.num_fresh] = i;
            block.num_fresh += fresh;
        }
    };
    const std::size_t n = keys.size(), num_blocks = (n + kBlock - 1) / kBlock;
    for (std::size_t ahead = 0; ahead < num_blocks + kUse; ++ahead) {
        const auto block = [&](std::size_t behind) -> Block* {  // a number below 0 is huge
            return ahead - behind < num_blocks ? &blocks[(ahead - behind) % kBlocks] : nullptr;
        };
        if (Block* const next = block(0)) {
            next->begin = ahead * kBlock;
            next->count = static_cast<unsigned>(std::min(n - next->begin, kBlock));
            next->num_rest = 0;
            each(*next, look_up);
        }
        if (Block* const b = block(kUse)) use(*b);
        if (Block* const b = block(kRows)) {
            each(*b, ask_for_row);
            ask_for_second_lines(*b);
        }
        if (Block* const b = block(kRest)) find_rest(*b);
        if (Block* const b = block(kMatch)) each(*b, match);
    }
}

void Shard::pull(Keys keys, std::uint32_t step, Rows out, Span<std::uint32_t> slots,
                 Span<const std::uint8_t> wanted) {
    const std::size_t row_bytes = wire_bytes(out.wire, config_.dim);
    const EncodeRows encode = encode_rows(update_.weights(), out.wire, config_.dim);
    const bool plain = eviction_.plain(step);
    std::byte* to = out.data;
    if (snapshot_.active()) keep_before_change(keys);
    walk(
        keys, slots,
        [&](Key key, IndexLine& line, unsigned at, std::uint32_t here) {
            std::uint32_t& stamp = line.stamps[at];
            if (plain) {
                const std::uint32_t older = stamp;
                stamp = older + ((std::max(step, older) - older) & here);
            } else if (here != 0) {
                if (eviction_.expired(stamp, step)) return 0u;
                eviction_.used(bucket(key), key, step, stamp);
            }
            return here;
        },
        [&](Key key, bool& fresh) { return resolve(key, step, fresh); },
        [&](Block& block) {
            for (unsigned i = 0; i < block.num_fresh; ++i) {
                const std::size_t key = block.begin + block.fresh[i];
                start_row(keys[key], slots[key]);
            }
            unsigned count = block.count;
            if (!wanted.empty()) {
                count = 0;
                for (unsigned i = 0; i < block.count; ++i) {
                    block.rows[count] = block.rows[i];
                    count += wanted[block.begin + i] != 0;
                }
            }
            encode(block.rows, count, config_.dim, room_.data(), to);
            to += count * row_bytes;
        });
}

void Shard::lookup(Keys keys, Rows out) const {
    const std::size_t row_bytes = wire_bytes(out.wire, config_.dim);
    const EncodeRows encode = encode_rows(update_.weights(), out.wire, config_.dim);
    slots_.resize(keys.size());
    walk(
        keys, slots_,
        [&](Key, const IndexLine& line, unsigned at, std::uint32_t here) {
            return eviction_.expired(line.stamps[at], next_step_) ? 0u : here;
        },
        [&](Key key, bool&) {
            const KeyIndex::Entry entry = index_.find(bucket(key), key);
            return entry && !eviction_.expired(entry.stamp(), next_step_) ? entry.slot() : kNoSlot;
        },
        [&](const Block& block) {
            encode(block.rows, block.count, config_.dim, room_.data(), out.data + block.begin * row_bytes);
        });
}

}  // namespace persia
