#include "persia/dedup.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "persia/prefetch.h"

namespace persia {
namespace {

constexpr std::size_t kBlock = 64;  // ids whose index lines are fetched before the first one is needed
constexpr std::size_t kNarrowRows = 65536;

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

// So sparse that most keys are where they are looked for first.
std::size_t index_size(std::size_t num_ids) {
    std::size_t size = kBlock;
    while (size < 4 * num_ids) size *= 2;
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
    starts_.resize(static_cast<std::size_t>(most) + 1);
}

void Deduplicator::reserve(std::size_t num_ids, std::size_t largest_table) {
    if (unique_.size() < num_ids) {
        unique_.resize(num_ids);
        uses_.resize(num_ids);
        ordinals_.resize(num_ids);
        rows_.resize(num_ids);
    }
    const std::size_t size = index_size(largest_table);
    if (entries_.size() < size) {
        entries_.assign(size, Entry{});
        epoch_ = 0;
    }
}

void Deduplicator::next_epoch() {
    if (epoch_ == std::numeric_limits<std::uint32_t>::max()) {
        std::fill(entries_.begin(), entries_.end(), Entry{});
        epoch_ = 0;
    }
    ++epoch_;
}

// Gives each id the first-use number of its key within the table; returns the new number of unique keys.
std::uint32_t Deduplicator::find_unique(Span<const Id> ids, std::size_t mask, std::uint64_t* unique,
                                        std::uint32_t* uses, std::uint32_t num_unique,
                                        std::uint32_t* ordinals) {
    Entry* const entries = entries_.data();
    const std::uint32_t epoch = epoch_;
    std::uint64_t keys[kBlock];
    for (std::size_t begin = 0; begin < ids.size(); begin += kBlock) {
        const std::size_t size = std::min(kBlock, ids.size() - begin);
        for (std::size_t i = 0; i < size; ++i) {
            keys[i] = mix(ids[begin + i]);
            prefetch_line(&entries[keys[i] & mask]);
        }
        for (std::size_t i = 0; i < size; ++i) {
            const std::uint64_t key = keys[i];
            std::size_t at = key & mask;
            while (opaque((entries[at].epoch == epoch) & (entries[at].key != key))) at = (at + 1) & mask;
            // Whether a key is new can't be predicted: so everything is written either way. What is written
            // behind the last unique key is overwritten by the next.
            Entry& entry = entries[at];
            const std::uint32_t fresh = opaque(entry.epoch != epoch);
            const std::uint32_t ordinal = fresh * num_unique + (1 - fresh) * entry.ordinal;
            entry = Entry{key, epoch, ordinal};
            unique[num_unique] = key;
            ++uses[ordinal];
            num_unique += fresh;
            ordinals[begin + i] = ordinal;
        }
    }
    return num_unique;
}

// Stable counting sort of a table's rows by bucket. Leaves in row_offsets[row + 1] where the row's positions
// *start*: filling them moves it to where they end, which is what it must be in the result.
void Deduplicator::sort_table(std::size_t table, const std::uint32_t* uses, const std::uint64_t* unique,
                              DedupResult& result) {
    const std::uint32_t base = result.table_offsets[table];
    const std::uint32_t num_rows = result.table_offsets[table + 1] - base;
    const std::uint32_t num_buckets = plan_.num_buckets[table];
    const BucketOf bucket(num_buckets);
    std::uint32_t* const starts = starts_.data();
    std::fill(starts, starts + num_buckets + 1, 0);
    for (std::uint32_t i = 0; i < num_rows; ++i) ++starts[bucket(unique[i]) + 1];
    starts[0] = base;
    for (std::uint32_t b = 0; b < num_buckets; ++b) starts[b + 1] += starts[b];

    std::uint32_t* const servers = result.server_offsets.data() + table * (num_servers_ + 1);
    for (std::size_t p = 0; p <= num_servers_; ++p) servers[p] = starts[plan_.bounds[table][p]];

    std::uint32_t* const rows = rows_.data() + base;
    for (std::uint32_t i = 0; i < num_rows; ++i) {
        const std::uint32_t row = starts[bucket(unique[i])]++;
        rows[i] = row;
        result.keys[row] = unique[i];
        result.row_offsets[row + 1] = uses[i];
    }
    std::uint32_t start = result.row_offsets[base];  // where the previous table, filled by now, ends
    for (std::uint32_t row = base; row < base + num_rows; ++row) {
        const std::uint32_t count = result.row_offsets[row + 1];
        result.row_offsets[row + 1] = start;
        start += count;
    }
}

template <typename Index>
void Deduplicator::fill_features(std::size_t table, Index* indices, DedupResult& result) const {
    const std::uint32_t group_base = result.group_offsets[plan_.groups[table]];
    const std::uint32_t* const rows = rows_.data() + result.table_offsets[table];
    std::uint32_t* const ends = result.row_offsets.data() + 1;
    std::uint32_t* const positions = result.positions.data();
    for (const std::uint32_t f : features_[table]) {
        for (std::uint32_t i = result.feature_offsets[f]; i < result.feature_offsets[f + 1]; ++i) {
            const std::uint32_t row = rows[ordinals_[i]];
            indices[i] = static_cast<Index>(row - group_base);
            positions[ends[row]++] = i;
        }
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
    std::size_t largest_table = 0;
    for (const auto& features : features_) {
        std::size_t size = 0;
        for (const std::uint32_t f : features) size += values[f].size();
        largest_table = std::max(largest_table, size);
    }

    const std::lock_guard<std::mutex> lock(mutex_);
    reserve(num_ids, largest_table);
    result.table_offsets = AlignedArray<std::uint32_t>(num_tables() + 1);
    result.group_offsets = AlignedArray<std::uint32_t>(num_groups_ + 1);
    result.table_offsets[0] = result.group_offsets[0] = 0;
    for (std::size_t t = 0; t < num_tables(); ++t) {
        std::size_t table_ids = 0;
        for (const std::uint32_t f : features_[t]) table_ids += values[f].size();
        const std::size_t mask = index_size(table_ids) - 1;
        const std::uint32_t base = result.table_offsets[t];
        std::uint32_t num_unique = 0;
        next_epoch();
        std::fill(uses_.data() + base, uses_.data() + base + table_ids, 0);
        for (const std::uint32_t f : features_[t]) {
            num_unique = find_unique(values[f], mask, unique_.data() + base, uses_.data() + base, num_unique,
                                     ordinals_.data() + result.feature_offsets[f]);
        }
        result.table_offsets[t + 1] = base + num_unique;
        result.group_offsets[plan_.groups[t] + 1] = base + num_unique;
    }
    for (std::size_t g = 0; g < num_groups_; ++g) {
        result.narrow &= result.group_offsets[g + 1] - result.group_offsets[g] <= kNarrowRows;
    }

    const std::size_t num_rows = num_tables() == 0 ? 0 : result.table_offsets[num_tables()];
    result.keys = AlignedArray<std::uint64_t>(num_rows);
    result.server_offsets = AlignedArray<std::uint32_t>(num_tables() * (num_servers_ + 1));
    result.row_offsets = AlignedArray<std::uint32_t>(num_rows + 1);
    result.row_offsets[0] = 0;
    result.positions = AlignedArray<std::uint32_t>(num_ids);
    result.narrow_indices = AlignedArray<std::uint16_t>(result.narrow ? num_ids : 0);
    result.wide_indices = AlignedArray<std::uint32_t>(result.narrow ? 0 : num_ids);
    for (std::size_t t = 0; t < num_tables(); ++t) {
        const std::uint32_t base = result.table_offsets[t];
        sort_table(t, uses_.data() + base, unique_.data() + base, result);
        if (result.narrow) {
            fill_features(t, result.narrow_indices.data(), result);
        } else {
            fill_features(t, result.wide_indices.data(), result);
        }
    }
    result.shares = Shares(result.server_offsets, num_servers_, plan_.groups);
    return result;
}

}  // namespace persia
