#include "persia/recent_rows.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "persia/prefetch.h"

namespace persia {
namespace {

constexpr std::size_t kAhead = 16;        // keys whose entries are fetched before the first one is needed
constexpr std::size_t kMostEntries = 10;  // a key
constexpr std::int64_t kNoRoom = -1;

}  // namespace

RecentRows::RecentRows(std::vector<std::uint32_t> groups, std::uint32_t reuse_steps)
    : groups_(std::move(groups)), reuse_steps_(reuse_steps), indexes_(groups_.size()) {
    if (reuse_steps < 1 || reuse_steps > kMostSteps) {
        throw std::invalid_argument("reuse_steps: got " + std::to_string(reuse_steps) + ", expected 1 to " +
                                    std::to_string(kMostSteps));
    }
    for (std::size_t t = 0; t < groups_.size(); ++t) {
        const std::uint32_t before = t == 0 ? 0 : groups_[t - 1];
        if (groups_[t] != before && (t == 0 || groups_[t] != before + 1)) {
            throw std::invalid_argument("groups: expected numbers that start at 0 and grow by 0 or 1");
        }
    }
    rings_.resize(groups_.empty() ? 0 : groups_.back() + 1);
}

std::vector<RecentRows::Line>& RecentRows::index_for(std::size_t table, std::size_t num_keys) {
    std::vector<Line>& index = indexes_[table];
    // About as many as there will be; beyond that the oldest go, which are of use for the shortest time.
    const std::size_t num_entries = std::min<std::size_t>(reuse_steps_ + 2, kMostEntries) * num_keys;
    if (index.size() * kEntries < num_entries) {
        std::size_t size = 16;
        while (size * kEntries < num_entries) size *= 2;
        index.assign(size, Line{});
    }
    return index;
}

// Where `rows` rows find room beside those that are held.
std::int64_t RecentRows::room_for(const GroupRing& ring, std::int64_t rows) {
    for (const std::int64_t begin : {ring.next, std::int64_t{0}}) {
        const auto meets = [&](const Held& span) { return span.begin < begin + rows && begin < span.end; };
        if (begin + rows <= ring.rows && std::none_of(ring.held.begin(), ring.held.end(), meets))
            return begin;
    }
    return kNoRoom;
}

std::uint32_t RecentRows::find(Keys keys, Span<const std::uint32_t> table_offsets, std::uint32_t step,
                               Span<std::uint8_t> wanted, Span<std::uint32_t> places, Span<Ring> rings) {
    if (step <= last_step_) {
        throw std::invalid_argument("step: got " + std::to_string(step) + " after " +
                                    std::to_string(last_step_) + ", expected steps that grow");
    }
    last_step_ = step;
    const std::uint32_t oldest = step > reuse_steps_ ? step - reuse_steps_ : 1;
    std::uint32_t ages = 0;
    for (std::size_t first = 0, end = 0; first < groups_.size(); first = end) {
        const std::uint32_t group = groups_[first];
        while (end < groups_.size() && groups_[end] == group) ++end;
        GroupRing& ring = rings_[group];
        while (!ring.held.empty() && ring.held.front().step < oldest) ring.held.pop_front();
        std::int64_t begin = kNoRoom, count = 0;
        std::uint32_t used = 0;
        while (begin == kNoRoom) {
            count = 0;
            used = 0;
            const std::uint32_t since = std::max(oldest, ring.since);
            for (std::size_t t = first; t < end; ++t) {
                const std::size_t last = table_offsets[t + 1];
                const std::vector<Line>& index = index_for(t, last - table_offsets[t]);
                const std::size_t mask = index.size() - 1;
                for (std::size_t i = table_offsets[t]; i < last; ++i) {
                    if (i + kAhead < last) prefetch_line(&index[keys[i + kAhead] & mask]);
                    wanted[i] = 1;
                    for (const Entry& entry : index[keys[i] & mask].entries) {
                        if (entry.key != keys[i] || entry.step < since) continue;
                        wanted[i] = 0;
                        places[i] = entry.place;
                        used |= 1u << (step - entry.step);
                    }
                    count += wanted[i];
                }
            }
            begin = room_for(ring, count);
            if (begin == kNoRoom) {  // a larger ring, in which nothing is held yet
                ring.rows = 2 * std::max(ring.rows, count);
                ring.held.clear();
                ring.next = 0;
                ring.since = step;
            }
        }
        ages |= used;
        std::int64_t next = begin;
        for (std::size_t t = first; t < end; ++t) {
            std::vector<Line>& index = indexes_[t];
            const std::size_t mask = index.size() - 1;
            for (std::size_t i = table_offsets[t]; i < table_offsets[t + 1]; ++i) {
                if (wanted[i] == 0) continue;
                places[i] = static_cast<std::uint32_t>(next++);
                auto& entries = index[keys[i] & mask].entries;
                // The key's own old entry, if there is one, else the oldest: a key has one entry.
                const auto better = [&](const Entry& a, const Entry& b) {
                    return (a.key == keys[i] ? 0 : a.step + 1) < (b.key == keys[i] ? 0 : b.step + 1);
                };
                *std::min_element(std::begin(entries), std::end(entries), better) = {keys[i], step,
                                                                                     places[i]};
            }
        }
        if (count != 0) ring.held.push_back({step, begin, next});
        ring.next = next;
        rings[group] = {begin, ring.rows};
    }
    return ages;
}

}  // namespace persia
