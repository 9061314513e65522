#include "persia/dedup.h"

#include <algorithm>
#include <map>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "persia/key.h"
#include "persia/wide.h"

using namespace persia;

using Ids = std::vector<std::vector<uint64_t>>;

DedupResult run(Deduplicator& dedup, const Ids& ids) {
    std::vector<Span<const Id>> spans;
    for (const auto& feature : ids) spans.push_back({feature.data(), feature.size()});
    return dedup.run(spans);
}

// Two servers over two tables: features 0 and 2 share table 0.
DedupPlan small_plan() { return {{0, 1, 0}, {0, 0}, {4, 1}, {{0, 1, 4}, {0, 0, 1}}}; }

template <typename T>
size_t row_of(const AlignedArray<T>& indices, size_t id) {
    return indices[id];
}

// Everything that the header promises, from the ids alone.
void check_against_definition(const DedupPlan& plan, const Ids& ids, const DedupResult& result) {
    const size_t num_tables = plan.groups.size(), num_servers = plan.bounds[0].size() - 1;
    size_t num_ids = 0, row = 0;
    for (size_t t = 0; t < num_tables; ++t) {
        CHECK(result.table_offsets[t] == row);
        std::vector<uint64_t> seen;  // in first-use order
        std::map<uint64_t, std::vector<size_t>> uses;
        size_t position = 0;
        for (size_t f = 0; f < ids.size(); ++f) {
            CHECK(result.feature_offsets[f] == position);
            for (const uint64_t id : ids[f]) {
                if (plan.tables[f] == t) {
                    if (uses[mix(id)].empty()) seen.push_back(mix(id));
                    uses[mix(id)].push_back(position);
                }
                ++position;
            }
        }
        num_ids = position;
        const BucketOf bucket(plan.num_buckets[t]);
        std::stable_sort(seen.begin(), seen.end(),
                         [&](uint64_t a, uint64_t b) { return bucket(a) < bucket(b); });
        for (size_t p = 0; p < num_servers; ++p) {
            const auto below = [&](size_t end) {
                return row + static_cast<size_t>(std::count_if(seen.begin(), seen.end(), [&](uint64_t key) {
                           return bucket(key) < plan.bounds[t][end];
                       }));
            };
            CHECK(result.server_offsets[t * (num_servers + 1) + p] == below(p));
            CHECK(result.server_offsets[t * (num_servers + 1) + p + 1] == below(p + 1));
        }
        const size_t group_base = result.group_offsets[plan.groups[t]];
        for (const uint64_t key : seen) {
            CHECK(result.keys[row] == key);
            const std::vector<size_t>& expected = uses[key];
            CHECK(result.row_offsets[row + 1] - result.row_offsets[row] == expected.size());
            for (size_t i = 0; i < expected.size(); ++i) {
                CHECK(result.positions[result.row_offsets[row] + i] == expected[i]);
                const size_t index = result.narrow ? row_of(result.narrow_indices, expected[i])
                                                   : row_of(result.wide_indices, expected[i]);
                CHECK(group_base + index == row);
            }
            ++row;
        }
    }
    CHECK(result.table_offsets[num_tables] == row && result.keys.size() == row);
    CHECK(result.group_offsets[plan.groups.back() + 1] == row);
    CHECK(result.row_offsets[0] == 0 && result.row_offsets[row] == num_ids);
    CHECK(result.positions.size() == num_ids && result.feature_offsets[ids.size()] == num_ids);
}

void follows_the_definition() {
    std::mt19937_64 random(7);
    Deduplicator small(small_plan());
    for (const Ids& ids : {Ids{{}, {}, {}}, Ids{{5}, {5}, {5}}, Ids{{0, UINT64_MAX, 0}, {}, {1, 0}}}) {
        check_against_definition(small_plan(), ids, run(small, ids));
    }
    const DedupPlan plan{
        {2, 0, 1, 1}, {0, 1, 1}, {16, 1024, 2}, {{0, 0, 9, 16}, {0, 300, 700, 1024}, {0, 1, 1, 2}}};
    Deduplicator dedup(plan);
    for (int round = 0; round < 30; ++round) {
        Ids ids(4);
        for (auto& feature : ids) {
            feature.resize(random() % 300);
            const uint64_t distinct = 1 + random() % 200;
            for (auto& id : feature) id = random() % distinct;
        }
        check_against_definition(plan, ids, run(dedup, ids));
    }
}

// Keys whose low bits are all ones look for a slot from the last one on, which most others are at home in.
void keys_with_one_home_are_told_apart() {
    std::mt19937_64 random(8);
    const DedupPlan plan{{0, 1, 2}, {0, 0, 0}, {8, 1, 4}, {{0, 3, 8}, {0, 1, 1}, {0, 0, 4}}};
    Deduplicator dedup(plan);
    for (const size_t num_ids : {40, 300, 5000, 17000}) {
        for (int round = 0; round < 3; ++round) {
            Ids ids(3);
            for (auto& feature : ids) {
                feature.resize(num_ids - random() % 9);
                for (auto& id : feature) {
                    const uint64_t key = random() % 200;
                    id = key < 150 ? unmix(key << 40 | ((1u << 30) - 1)) : unmix(key - 150);
                }
            }
            check_against_definition(plan, ids, run(dedup, ids));
        }
    }
}

// One feature's ids, up to 512 of them, are sorted where the processor can: by the first bits of their keys.
void few_ids_of_a_feature_follow_the_definition() {
    std::mt19937_64 random(9);
    const DedupPlan plan{{2, 0, 1},
                         {0, 1, 1},
                         {1024, 512, 1u << 20},
                         {{0, 0, 300, 1024}, {0, 511, 511, 512}, {0, 1, 1u << 19, 1u << 20}}};
    Deduplicator dedup(plan);
    const auto draw = [&random](int kind, std::uint64_t distinct) {
        const std::uint64_t number = random() % distinct;
        switch (kind) {
            case 0:
                return number;
            case 1:  // keys with the same first 32 bits
                return unmix(std::uint64_t{77} << 32 | number);
            case 2:  // all keys of a bucket
                return unmix(std::uint64_t{77} << 54 | mix(number) >> 12);
            case 3:  // some keys of each of few buckets
                return unmix((number % 40) << 54 | mix(number) >> 12);
            default:  // the first and the last key too
                return unmix(number % 3 == 0 ? number % 2 - 1 : number);
        }
    };
    for (const std::size_t num_ids : {95, 96, 97, 255, 256, 257, 400, 511, 512, 513}) {
        for (int kind = 0; kind < 5; ++kind) {
            for (const std::uint64_t distinct : {1, 2, 60, 5000}) {
                Ids ids(3);
                for (auto& feature : ids) {
                    feature.resize(num_ids - random() % 2);
                    for (auto& id : feature) id = draw(kind, distinct);
                }
                check_against_definition(plan, ids, run(dedup, ids));
            }
        }
    }
}

void indices_widen_at_65537_rows_of_a_group() {
    Deduplicator dedup(small_plan());
    Ids ids(3);
    for (uint64_t id = 0; id < 65536; ++id) ids[id % 3].push_back(id);
    ids[2].push_back(ids[0][0]);  // known in table 0: still 65536 rows
    CHECK(run(dedup, ids).narrow);
    ids[1].push_back(UINT64_MAX);
    const DedupResult wide = run(dedup, ids);
    CHECK(!wide.narrow);
    check_against_definition(small_plan(), ids, wide);
    ids[1].pop_back();
    CHECK(run(dedup, ids).narrow);
}

template <typename Change>
void refused(const Change& change) {
    DedupPlan plan = small_plan();
    change(plan);
    bool threw = false;
    try {
        Deduplicator dedup(plan);
    } catch (const std::invalid_argument&) {
        threw = true;
    }
    CHECK(threw);
}

void more_ids_of_a_table_than_slots_have_numbers_are_refused() {
    Deduplicator dedup(small_plan());
    const std::uint64_t id = 0;
    const std::size_t most = std::size_t{1} << 30;
    for (std::size_t feature = 0; feature < dedup.num_features(); ++feature) {
        std::vector<persia::Span<const std::uint64_t>> values(dedup.num_features());
        values[feature] = {&id, most + 1};  // none of which may be read
        bool threw = false;
        try {
            dedup.run(values);
        } catch (const std::invalid_argument&) {
            threw = true;
        }
        CHECK(threw);
    }
}

void contradictory_plans_are_refused() {
    refused([](DedupPlan& p) { p.num_buckets[0] = 3; });
    refused([](DedupPlan& p) { p.num_buckets[0] = 0; });
    refused([](DedupPlan& p) { p.bounds[1] = {0, 1}; });
    refused([](DedupPlan& p) { p.bounds[0] = {0, 5, 4}; });
    refused([](DedupPlan& p) { p.bounds[0] = {0, 1, 3}; });
    refused([](DedupPlan& p) { p.groups = {0, 2}; });
    refused([](DedupPlan& p) { p.groups = {1, 1}; });
    refused([](DedupPlan& p) { p.tables[1] = 2; });
    refused([](DedupPlan& p) { p.bounds.pop_back(); });
}

int main() {
    follows_the_definition();
    few_ids_of_a_feature_follow_the_definition();
    const bool wide = use_wide;
    use_wide = false;  // as on processors without AVX-512
    follows_the_definition();
    few_ids_of_a_feature_follow_the_definition();
    use_wide = wide;
    keys_with_one_home_are_told_apart();
    indices_widen_at_65537_rows_of_a_group();
    more_ids_of_a_table_than_slots_have_numbers_are_refused();
    contradictory_plans_are_refused();
}
