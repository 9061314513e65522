#include "persia/dedup.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "persia/prefetch.h"

namespace persia {
namespace {

constexpr std::size_t kBlock = 64;  // ids whose index lines are fetched before the first one is needed
constexpr std::size_t kNarrowRows = 65536;
constexpr std::size_t kNearIds = 4096;  // of a table whose work the first caches hold
constexpr std::size_t kStartsPadding = 4;

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

// A condition that the compiler must compute: of a comparison it would make a branch that can't be predicted.
std::uint32_t opaque(std::uint32_t condition) {
    __asm__("" : "+r"(condition));
    return condition;
}

// So sparse that most keys are where they are looked for first; the more so while the first caches hold it.
std::size_t index_size(std::size_t num_ids) {
    std::size_t size = kBlock;
    while (size < (num_ids <= kNearIds ? 8 : 4) * num_ids) size *= 2;
    return size;
}

// Turns counts [size + 1], of which the last is 0, into the sums of those before each.
template <typename Counter>
void add_up(Counter* counts, std::size_t size) {
    Counter sum = 0;
    for (std::size_t i = 0; i <= size; ++i) sum = static_cast<Counter>(sum + std::exchange(counts[i], sum));
}

// Four counts at a time, which a multiplication adds up.
template <>
void add_up(std::uint16_t* counts, std::size_t size) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first count is the lowest part of a word");
    constexpr std::uint64_t kOnes = 0x0001000100010001u;
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i <= size; i += 4) {
        std::uint64_t four;
        std::memcpy(&four, counts + i, sizeof four);
        const std::uint64_t sums = four * kOnes;
        const std::uint64_t before = (sums << 16) + sum * kOnes;
        std::memcpy(counts + i, &before, sizeof before);
        sum += sums >> 48;
    }
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
    starts_.resize(static_cast<std::size_t>(most) + kStartsPadding);
}

void Deduplicator::reserve(std::size_t largest_table) {
    if (ordinals_.size() < largest_table) {
        ordinals_.resize(largest_table);
        rows_.resize(largest_table);
        unique_.resize(largest_table + 1);
    }
    const std::size_t size = index_size(largest_table);
    if (index_.size() < size) index_.resize(size, 0);
}

void Deduplicator::begin_table(std::size_t num_ids, std::uint32_t num_unique) {
    first_ += num_unique;
    if (num_ids < std::numeric_limits<std::uint32_t>::max() - first_) return;
    std::fill(index_.begin(), index_.end(), 0);
    first_ = 1;
}

// Gives each id the first-use number of its key within the table; returns the new number of unique keys.
template <bool kFar>
std::uint32_t Deduplicator::find_unique(Span<const Id> ids, std::size_t mask, std::uint32_t num_unique,
                                        std::uint32_t* ordinals) {
    std::uint32_t* const index = index_.data();
    std::uint64_t* const unique = unique_.data();
    const std::uint32_t first = first_;
    std::uint64_t keys[kBlock];
    for (std::size_t begin = 0; begin < ids.size(); begin += kBlock) {
        const std::size_t size = std::min(kBlock, ids.size() - begin);
        for (std::size_t i = 0; i < size; ++i) keys[i] = mix(ids[begin + i]);
        if (kFar) {
            for (std::size_t i = 0; i < size; ++i) prefetch_line(&index[keys[i] & mask]);
            for (std::size_t i = 0; i < size; ++i) {
                const std::uint32_t number = index[keys[i] & mask];
                if (number >= first) prefetch_line(&unique[number - first]);
            }
        }
        for (std::size_t i = 0; i < size; ++i) {
            // Whether a key is new can't be predicted: so everything is written either way. What is written
            // behind the last unique key is overwritten by the next.
            const std::uint64_t key = keys[i];
            unique[num_unique] = key;
            std::size_t at = key & mask;
            std::uint32_t ordinal, fresh;
            for (;; at = (at + 1) & mask) {
                const std::uint32_t number = index[at];
                fresh = opaque(number < first);
                ordinal = number - first;
                ordinal ^= (ordinal ^ num_unique) & (0 - fresh);
                if (__builtin_expect(unique[ordinal] == key, 1)) break;
            }
            index[at] = first + ordinal;
            ordinals[begin + i] = ordinal;
            num_unique += fresh;
        }
    }
    return num_unique;
}

// Stable counting sort of a table's rows by bucket.
template <typename Counter>
void Deduplicator::sort_table(std::size_t table, std::uint32_t base, std::uint32_t num_rows,
                              DedupResult& result) {
    const std::uint32_t num_buckets = plan_.num_buckets[table];
    const BucketOf bucket(num_buckets);
    const std::uint64_t* const unique = unique_.data();
    auto* const starts = reinterpret_cast<Counter*>(starts_.data());
    std::fill(starts, starts + num_buckets + kStartsPadding, Counter{0});
    for (std::uint32_t i = 0; i < num_rows; ++i) ++starts[bucket(unique[i])];
    add_up(starts, num_buckets);

    std::uint32_t* const servers = result.server_offsets.data() + table * (num_servers_ + 1);
    for (std::size_t p = 0; p <= num_servers_; ++p) servers[p] = base + starts[plan_.bounds[table][p]];

    std::uint64_t* const keys = result.keys.data() + base;
    std::uint32_t* const rows = rows_.data();
    for (std::uint32_t i = 0; i < num_rows; ++i) {
        const std::uint32_t row = starts[bucket(unique[i])]++;
        rows[i] = row;
        keys[row] = unique[i];
    }
}

// The transpose is filled in three passes: how often each row is used, where its positions start, and the
// positions, which moves the start to where they end.
template <typename Index>
void Deduplicator::fill_features(std::size_t table, std::uint32_t base, std::uint32_t num_rows,
                                 Index* indices, DedupResult& result) {
    const std::uint32_t in_group = base - result.group_offsets[plan_.groups[table]];
    const std::uint32_t* const rows = rows_.data();
    std::uint32_t* const ends = result.row_offsets.data() + base + 1;
    std::uint32_t* const positions = result.positions.data();
    std::fill(ends, ends + num_rows, 0);
    std::uint32_t* ordinals = ordinals_.data();
    for (const std::uint32_t f : features_[table]) {
        const std::uint32_t end = result.feature_offsets[f + 1];
        for (std::uint32_t i = result.feature_offsets[f]; i < end; ++i, ++ordinals) {
            const std::uint32_t row = rows[*ordinals];
            *ordinals = row;
            indices[i] = static_cast<Index>(in_group + row);
            ++ends[row];
        }
    }
    std::uint32_t start = ends[-1];  // where the table before ends
    for (std::uint32_t row = 0; row < num_rows; ++row) start += std::exchange(ends[row], start);
    ordinals = ordinals_.data();
    for (const std::uint32_t f : features_[table]) {
        const std::uint32_t end = result.feature_offsets[f + 1];
        for (std::uint32_t i = result.feature_offsets[f]; i < end; ++i) positions[ends[*ordinals++]++] = i;
    }
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
    const auto few = [](std::size_t rows) { return rows <= kNarrowRows; };
    const bool surely_narrow = std::all_of(group_ids.begin(), group_ids.end(), few);

    const std::lock_guard<std::mutex> lock(mutex_);
    reserve(table_ids.empty() ? 0 : *std::max_element(table_ids.begin(), table_ids.end()));
    result.table_offsets = AlignedArray<std::uint32_t>(num_tables() + 1);
    result.group_offsets = AlignedArray<std::uint32_t>(num_groups_ + 1);
    result.server_offsets = AlignedArray<std::uint32_t>(num_tables() * (num_servers_ + 1));
    // For as many rows as there may be, so that a table is done with while its ids and keys are in the cache.
    result.keys = AlignedArray<std::uint64_t>(num_ids);
    result.row_offsets = AlignedArray<std::uint32_t>(num_ids + 1);
    result.positions = AlignedArray<std::uint32_t>(num_ids);
    result.narrow_indices = AlignedArray<std::uint16_t>(surely_narrow ? num_ids : 0);
    result.wide_indices = AlignedArray<std::uint32_t>(surely_narrow ? 0 : num_ids);
    result.row_offsets[0] = result.group_offsets[0] = 0;
    std::uint32_t base = 0, num_unique = 0;
    for (std::size_t t = 0; t < num_tables(); ++t) {
        const std::size_t size = index_size(table_ids[t]);
        begin_table(table_ids[t], num_unique);
        num_unique = 0;
        const bool near = table_ids[t] <= kNearIds;
        if (near && table_ids[t] != 0) {  // what will be written in another order than memory's
            prefetch(result.keys.data() + base, table_ids[t] * sizeof(std::uint64_t));
            prefetch(result.row_offsets.data() + base, table_ids[t] * sizeof(std::uint32_t));
            prefetch(result.positions.data() + result.row_offsets[base],
                     table_ids[t] * sizeof(std::uint32_t));
        }
        std::uint32_t* ordinals = ordinals_.data();
        for (const std::uint32_t f : features_[t]) {
            num_unique = near ? find_unique<false>(values[f], size - 1, num_unique, ordinals)
                              : find_unique<true>(values[f], size - 1, num_unique, ordinals);
            ordinals += values[f].size();
        }
        result.table_offsets[t] = base;
        if (num_unique <= std::numeric_limits<std::uint16_t>::max()) {
            sort_table<std::uint16_t>(t, base, num_unique, result);
        } else {
            sort_table<std::uint32_t>(t, base, num_unique, result);
        }
        if (surely_narrow) {
            fill_features(t, base, num_unique, result.narrow_indices.data(), result);
        } else {
            fill_features(t, base, num_unique, result.wide_indices.data(), result);
        }
        base += num_unique;
        result.group_offsets[plan_.groups[t] + 1] = base;
    }
    begin_table(0, num_unique);
    result.table_offsets[num_tables()] = base;
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
