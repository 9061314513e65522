#include "persia/dedup.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "dedup_loops.h"
#include "dedup_wide.h"
#include "persia/prefetch.h"

namespace persia {
namespace {

constexpr std::size_t kNarrowRows = 65536;
constexpr std::size_t kNearIds = 4096;    // of a table whose work the first caches hold
constexpr std::size_t kSmallIds = 16384;  // of a table whose ids and slots have numbers of 16 bits
constexpr std::size_t kFewestSlots = 64;
constexpr std::size_t kFewestSorted = 96;  // of a table whose ids are sorted, if the processor can
constexpr std::size_t kMostIds = std::size_t{1} << 30;  // of a table: their slots are numbered in 32 bits
constexpr std::size_t kPadding = 16;                    // elements that may be written behind the last
constexpr std::size_t kAhead = 16;  // ids whose slots are fetched before they are needed, with many ids

void check(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument("Deduplicator: " + message);
}

bool is_power_of_two(std::uint32_t n) { return n != 0 && (n & (n - 1)) == 0; }

void check_plan(const DedupPlan& plan) {
    const std::size_t num_tables = plan.groups.size();
    check(plan.num_buckets.size() == num_tables && plan.bounds.size() == num_tables,
          "groups, num_buckets and bounds must have one entry per table, got " + std::to_string(num_tables) +
              ", " + std::to_string(plan.num_buckets.size()) + " and " + std::to_string(plan.bounds.size()));
    for (std::size_t t = 0; t < num_tables; ++t) {
        const std::string table = "table " + std::to_string(t) + ": ";
        const std::uint32_t previous = t == 0 ? 0 : plan.groups[t - 1];
        check(plan.groups[t] == previous || (t > 0 && plan.groups[t] == previous + 1),
              table + "groups must start at 0 and grow by 0 or 1, got " + std::to_string(plan.groups[t]) +
                  " after " + std::to_string(previous));
        check(is_power_of_two(plan.num_buckets[t]),
              table + "num_buckets must be a power of two, got " + std::to_string(plan.num_buckets[t]));
        const auto& bounds = plan.bounds[t];
        check(bounds.size() >= 2 && bounds.size() == plan.bounds[0].size(),
              table + "bounds must have servers + 1 entries, the same for all tables, got " +
                  std::to_string(bounds.size()));
        check(bounds.front() == 0 && bounds.back() == plan.num_buckets[t] &&
                  std::is_sorted(bounds.begin(), bounds.end()),
              table + "bounds must grow from 0 to num_buckets = " + std::to_string(plan.num_buckets[t]));
    }
    for (std::size_t f = 0; f < plan.tables.size(); ++f) {
        check(plan.tables[f] < num_tables, "feature " + std::to_string(f) + ": table must be below " +
                                               std::to_string(num_tables) + ", got " +
                                               std::to_string(plan.tables[f]));
    }
}

// So many that most keys have one of their own; the more so while the first caches hold them.
std::size_t count_slots(std::size_t num_ids) {
    std::size_t size = kFewestSlots;
    while (size < (num_ids <= kNearIds ? 8 : 4) * num_ids) size *= 2;
    return size;
}

}  // namespace

Deduplicator::Deduplicator(DedupPlan plan) : plan_(std::move(plan)) {
    check_plan(plan_);
    num_servers_ = plan_.bounds.empty() ? 1 : plan_.bounds[0].size() - 1;
    num_groups_ = plan_.groups.empty() ? 0 : plan_.groups.back() + 1;
    features_.resize(num_tables());
    for (std::size_t f = 0; f < num_features(); ++f)
        features_[plan_.tables[f]].push_back(static_cast<std::uint32_t>(f));
    std::uint32_t most = 0;
    for (const std::uint32_t n : plan_.num_buckets) most = std::max(most, n);
    starts_.resize(static_cast<std::size_t>(most) + kSumPadding);
}

// Of one table with n ids, which are named by their numbers 0 .. n-1. A key is named by its first id.
template <typename Small>
struct Deduplicator::Scratch {
    struct Use {
        Small first, before;  // the id's key, and how many ids before this one have it
    };

    static std::size_t words(std::size_t num_ids) {
        return (6 * num_ids + count_slots(num_ids)) * sizeof(Small) / sizeof(std::uint32_t) + 1;
    }

    Scratch(const std::vector<std::uint64_t>& mixed, std::uint32_t* memory, std::size_t num_ids)
        : keys(mixed.data()),
          uses(reinterpret_cast<Use*>(memory)),
          counts(reinterpret_cast<Small*>(uses + num_ids)),
          homes(counts + num_ids),
          firsts(homes + num_ids),
          rows(firsts + num_ids),
          slots(rows + num_ids) {}

    const std::uint64_t* keys;  // [n]
    Use* uses;                  // [n]
    Small* counts;              // [n] of a key: its ids
    Small* homes;               // [n] the slot where the id's key is looked for first; of a key: its slot
    Small* firsts;              // [U] the keys in order of first use
    Small* rows;                // [n] of a key
    Small* slots;               // a key each; what no home names is left from another table
};

void Deduplicator::reserve(std::size_t largest_table) {
    if (keys_.size() < largest_table) keys_.resize(largest_table);
    const std::size_t most_small = std::min(largest_table, kSmallIds);
    std::size_t words = Scratch<std::uint16_t>::words(most_small);
    if (largest_table > kSmallIds) words = std::max(words, Scratch<std::uint32_t>::words(largest_table));
    if (scratch_.size() < words) scratch_.resize(words);
}

// Gives each id the first id of its key; returns the number of keys. All slots that are homes get the first
// id that is at home there, from which no later id needs a decision, unless its key is another one. Those
// look on in the next slots, as in any open table. `next` is what the next table reads first.
template <typename Small>
std::uint32_t Deduplicator::find_unique(const Scratch<Small>& of, std::uint32_t num_ids,
                                        std::size_t num_slots, const Id* next) const {
    constexpr bool kFar = sizeof(Small) == 4;
    const std::uint64_t* const keys = of.keys;
    Small* const slots = of.slots;
    Small* const homes = of.homes;
    Small* const counts = of.counts;
    for (std::uint32_t i = num_ids; i-- > 0;) {
        if (kFar && i >= kAhead) prefetch_line(&slots[homes[i - kAhead]]);
        slots[homes[i]] = static_cast<Small>(i);
    }
    std::fill(counts, counts + num_ids, Small{0});
    std::uint32_t num_unique = 0;
    for (std::uint32_t i = 0; i < num_ids; ++i) {
        if (kFar && i + kAhead < num_ids) prefetch_line(&slots[homes[i + kAhead]]);
        if (!kFar && i % 8 == 0) prefetch_line(next + i);
        Small first = slots[homes[i]];
        if (__builtin_expect(keys[first] != keys[i], 0)) {
            for (std::size_t slot = homes[i];;) {
                slot = (slot + 1) & (num_slots - 1);
                first = slots[slot];
                if (first >= num_ids || homes[first] != slot) {  // it's free
                    slots[slot] = first = static_cast<Small>(i);
                    homes[i] = static_cast<Small>(slot);
                    break;
                }
                if (keys[first] == keys[i]) break;
            }
        }
        const Small count = counts[first];
        counts[first] = static_cast<Small>(count + 1);
        of.uses[i] = {first, count};
        of.firsts[num_unique] = static_cast<Small>(i);  // overwritten by the next, unless the key is new
        num_unique += opaque(first == i);
    }
    return num_unique;
}

// Stable counting sort of a table's rows by bucket. Leaves in row_offsets where the row's positions start.
template <typename Small>
void Deduplicator::sort_table(const Scratch<Small>& of, std::size_t table, std::uint32_t num_rows,
                              DedupResult& result) {
    const std::uint32_t base = result.table_offsets[table];
    const std::uint32_t num_buckets = plan_.num_buckets[table];
    const BucketOf bucket(num_buckets);
    auto* const starts = reinterpret_cast<Small*>(starts_.data());
    std::fill(starts, starts + num_buckets + kSumPadding, Small{0});
    for (std::uint32_t u = 0; u < num_rows; ++u) ++starts[bucket(of.keys[of.firsts[u]])];
    add_up(starts, num_buckets);

    std::uint32_t* const servers = result.server_offsets.data() + table * (num_servers_ + 1);
    for (std::size_t p = 0; p <= num_servers_; ++p) servers[p] = base + starts[plan_.bounds[table][p]];

    std::uint64_t* const keys = result.keys.data() + base;
    std::uint32_t* const offsets = result.row_offsets.data() + base;
    std::uint32_t start = offsets[0];
    for (std::uint32_t u = 0; u < num_rows; ++u) {
        const Small first = of.firsts[u];
        const Small row = starts[bucket(of.keys[first])]++;
        of.rows[first] = row;
        keys[row] = of.keys[first];
        offsets[row] = of.counts[first];
    }
    for (std::uint32_t row = 0; row < num_rows; ++row) start += std::exchange(offsets[row], start);
    offsets[num_rows] = start;
}

template <typename Small, typename Index>
void Deduplicator::fill_features(const Scratch<Small>& of, std::size_t table, Index* indices,
                                 DedupResult& result) const {
    const std::uint32_t base = result.table_offsets[table];
    const std::uint32_t in_group = base - result.group_offsets[plan_.groups[table]];
    const std::uint32_t* const offsets = result.row_offsets.data() + base;
    std::uint32_t* const positions = result.positions.data();
    const auto* use = of.uses;
    for (const std::uint32_t f : features_[table]) {
        const std::uint32_t end = result.feature_offsets[f + 1];
        for (std::uint32_t i = result.feature_offsets[f]; i < end; ++i, ++use) {
            const Small row = of.rows[use->first];
            indices[i] = static_cast<Index>(in_group + row);
            positions[offsets[row] + use->before] = i;
        }
    }
}

// The ids of a table's first feature, if it has one.
Span<const Id> Deduplicator::first_values(std::size_t table,
                                          const std::vector<Span<const Id>>& values) const {
    if (table >= num_tables() || features_[table].empty()) return {};
    return values[features_[table][0]];
}

#ifdef PERSIA_WIDE
// Of a table with few ids of one feature. Returns false if they are such that it must be done otherwise.
template <typename Index>
bool Deduplicator::sort_feature(std::size_t table, Span<const Id> ids, Span<const Id> next, Index* indices,
                                DedupResult& result) {
    const unsigned bucket_bits = 63 - BucketOf(plan_.num_buckets[table]).shift();
    if (ids.size() < kFewestSorted ||
        ids.size() > std::min<std::size_t>(SortedIds::kMost, plan_.num_buckets[table]) ||
        bucket_bits > 32 - SortedIds::kNumberBits) {
        return false;
    }
    const auto n = static_cast<std::uint32_t>(ids.size());
    const std::uint32_t base = result.table_offsets[table];
    const std::uint32_t first_id = result.feature_offsets[features_[table][0]];
    std::uint32_t* const offsets = result.row_offsets.data() + base;
    SortedIds of;
    mix_and_sort(ids, of);
    const std::uint32_t num_unique = find_starts(of, n, offsets);
    find_servers(of, num_unique, bucket_bits, plan_.bounds[table], base,
                 result.server_offsets.data() + table * (num_servers_ + 1));
    if (!order_buckets(of, num_unique, bucket_bits)) return false;
    write_positions(of, n, base - result.group_offsets[plan_.groups[table]], first_id,
                    result.positions.data() + offsets[0]);
    write_indices(of, n, indices + first_id, next);
    if (!list_keys(of, n, result.keys.data() + base)) return false;
    result.table_offsets[table + 1] = base + num_unique;
    return true;
}
#endif

template <typename Small>
void Deduplicator::run_table(std::size_t table, const std::vector<Span<const Id>>& values,
                             std::uint32_t num_ids, DedupResult& result) {
    const Scratch<Small> of(keys_, scratch_.data(), num_ids);
    const std::size_t num_slots = count_slots(num_ids);
    std::size_t done = 0;
    for (const std::uint32_t f : features_[table]) {
        mix_ids(values[f], num_slots - 1, keys_.data() + done, of.homes + done);
        done += values[f].size();
    }
    const Id* const next = first_values(table + 1, values).data();
    const std::uint32_t base = result.table_offsets[table];
    const std::uint32_t num_unique = find_unique(of, num_ids, num_slots, next);
    sort_table(of, table, num_unique, result);
    if (result.wide_indices.size() == 0) {
        fill_features(of, table, result.narrow_indices.data(), result);
    } else {
        fill_features(of, table, result.wide_indices.data(), result);
    }
    result.table_offsets[table + 1] = base + num_unique;
}

DedupResult Deduplicator::run(const std::vector<Span<const Id>>& values) {
    check(values.size() == num_features(), "expected the ids of " + std::to_string(num_features()) +
                                               " features, got " + std::to_string(values.size()) + " arrays");
    DedupResult result;
    result.feature_offsets = AlignedArray<std::uint32_t>(num_features() + 1);
    std::size_t num_ids = 0;
    result.feature_offsets[0] = 0;
    for (std::size_t f = 0; f < num_features(); ++f) {
        num_ids += values[f].size();
        check(num_ids < std::numeric_limits<std::uint32_t>::max(),
              "a batch must have fewer than 2^32 - 1 ids");
        result.feature_offsets[f + 1] = static_cast<std::uint32_t>(num_ids);
    }
    std::vector<std::size_t> table_ids(num_tables()), group_ids(num_groups_);
    for (std::size_t f = 0; f < num_features(); ++f) {
        table_ids[plan_.tables[f]] += values[f].size();
        group_ids[plan_.groups[plan_.tables[f]]] += values[f].size();
    }
    for (std::size_t t = 0; t < num_tables(); ++t) {
        check(table_ids[t] <= kMostIds, "table " + std::to_string(t) +
                                            ": a batch must have at most 2^30 ids, got " +
                                            std::to_string(table_ids[t]));
    }
    const auto few = [](std::size_t rows) { return rows <= kNarrowRows; };
    const bool surely_narrow = std::all_of(group_ids.begin(), group_ids.end(), few);

    const std::lock_guard<std::mutex> lock(mutex_);
    reserve(table_ids.empty() ? 0 : *std::max_element(table_ids.begin(), table_ids.end()));
    result.table_offsets = AlignedArray<std::uint32_t>(num_tables() + 1);
    result.group_offsets = AlignedArray<std::uint32_t>(num_groups_ + 1);
    result.server_offsets = AlignedArray<std::uint32_t>(num_tables() * (num_servers_ + 1));
    // For as many rows as there may be, so that a table is done with while its ids and keys are in the cache.
    result.keys = AlignedArray<std::uint64_t>(num_ids + kPadding);
    result.row_offsets = AlignedArray<std::uint32_t>(num_ids + 1 + kPadding);
    result.positions = AlignedArray<std::uint32_t>(num_ids);
    result.narrow_indices = AlignedArray<std::uint16_t>(surely_narrow ? num_ids : 0);
    result.wide_indices = AlignedArray<std::uint32_t>(surely_narrow ? 0 : num_ids);
    result.row_offsets[0] = result.group_offsets[0] = result.table_offsets[0] = 0;
    for (std::size_t t = 0; t < num_tables(); ++t) {
        const std::uint32_t base = result.table_offsets[t];
        const auto count = static_cast<std::uint32_t>(table_ids[t]);
#ifdef PERSIA_WIDE
        if (use_wide && features_[t].size() == 1) {
            const Span<const Id> ids = values[features_[t][0]], next = first_values(t + 1, values);
            if (surely_narrow ? sort_feature(t, ids, next, result.narrow_indices.data(), result)
                              : sort_feature(t, ids, next, result.wide_indices.data(), result)) {
                result.group_offsets[plan_.groups[t] + 1] = result.table_offsets[t + 1];
                continue;
            }
        }
#endif
        if (count != 0 && count <= kNearIds) {  // what will be written in another order than memory's
            prefetch(result.keys.data() + base, count * sizeof(std::uint64_t));
            prefetch(result.row_offsets.data() + base, count * sizeof(std::uint32_t));
            prefetch(result.positions.data() + result.row_offsets[base], count * sizeof(std::uint32_t));
        }
        if (count <= kSmallIds) {
            run_table<std::uint16_t>(t, values, count, result);
        } else {
            run_table<std::uint32_t>(t, values, count, result);
        }
        result.group_offsets[plan_.groups[t] + 1] = result.table_offsets[t + 1];
    }
    const std::uint32_t base = result.table_offsets[num_tables()];
    result.keys.shrink(base);
    result.row_offsets.shrink(base + 1);
    for (std::size_t g = 0; g < num_groups_; ++g) {
        result.narrow &= few(result.group_offsets[g + 1] - result.group_offsets[g]);
    }
    if (result.narrow && !surely_narrow) {
        result.narrow_indices = AlignedArray<std::uint16_t>(num_ids);
        std::copy(result.wide_indices.begin(), result.wide_indices.end(), result.narrow_indices.data());
        result.wide_indices = AlignedArray<std::uint32_t>(0);
    }
    result.shares = Shares(result.server_offsets, num_servers_, plan_.groups);
    return result;
}

}  // namespace persia
