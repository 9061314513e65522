// Asks for the memory that a call will need, while another shard is worked on: a call with few keys can't
// wait for its memory and work at the same time.
#include "persia/prefetch.h"
#include "persia/shard.h"

namespace persia {

void Shard::ask_for_lines(Keys keys) const {
    for (const Key key : keys) prefetch_line(index_.home_line(bucket(key), key));
}

void Shard::ask_for_rows(Keys keys) const {
    const std::size_t row_lines = rows_.weight_lines();
    for (const Key key : keys) {
        const IndexLine& line = *index_.home_line(bucket(key), key);
        const auto at =
            static_cast<unsigned>(__builtin_ctz(line.matches(key) | 1u << (IndexLine::kEntries - 1)));
        if (line.slots[at] != 0) prefetch_lines(rows_.weights(line.slots[at] - 1), row_lines);
    }
}

void Shard::ask_for_slots(Span<const std::uint32_t> slots) const {
    const std::size_t weight_lines = rows_.weight_lines();
    const std::size_t state_lines = update_.state_bytes() != 0 ? rows_.state_lines() : 0;
    for (const std::uint32_t slot : slots) {
        if (slot == kNoSlot) continue;
        prefetch_lines(rows_.weights(slot), weight_lines);
        prefetch_lines(rows_.state(slot), state_lines);
    }
}

}  // namespace persia
