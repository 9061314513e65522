#include "persia/ranking.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "persia/key.h"
#include "persia/prefetch.h"
#include "radix_sort.h"

namespace persia {
namespace {

// A sum whose error doesn't grow with the number of terms (Neumaier 1974); sums of integers are exact.
class Sum {
  public:
    void add(double x) {
        const double sum = sum_ + x;
        lost_ += std::abs(sum_) >= std::abs(x) ? (sum_ - sum) + x : (x - sum) + sum_;
        sum_ = sum;
    }
    void add(const Sum& other) {
        add(other.sum_);
        add(other.lost_);
    }
    double value() const { return sum_ + lost_; }

  private:
    double sum_ = 0, lost_ = 0;
};

struct Unweighted {
    std::uint32_t key;              // the score's, in its order
    std::uint32_t group_and_label;  // the label is the lowest bit
    void set_weight(double) {}
    double weight() const { return 1.0; }
    bool positive() const { return group_and_label & 1; }
    std::uint32_t group() const { return group_and_label >> 1; }
};

struct Weighted : Unweighted {
    double own;
    void set_weight(double weight) { own = weight; }
    double weight() const { return own; }
};

std::uint32_t key_of(float score) {
    std::uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    if (bits == 0x80000000u) bits = 0;  // -0 is 0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The samples that count, as items.
template <typename Item>
std::size_t gather(const ScoredSamples& samples, Span<Item> to) {
    std::size_t n = 0;
    for (std::size_t i = 0; i < samples.scores.size(); ++i) {
        const double weight = samples.weight.empty() ? 1.0 : samples.weight[i];
        if (weight == 0.0) continue;
        Item& item = to[n++];
        item.key = key_of(samples.scores[i]);
        const std::uint32_t group = samples.groups.empty() ? 0 : samples.groups[i];
        item.group_and_label = group << 1 | (samples.labels[i] != 0.0f);
        item.set_weight(weight);
    }
    return n;
}

// What one walk over samples of falling scores finds, where all that have one score are one block.
struct Walk {
    Sum positives, negatives;  // before the block and in it
    Sum pairs;                 // of a negative and a positive before it; half of those with equal scores
    Sum precision;             // of each block, times its positives

    void add(double block_positives, double block_negatives) {
        pairs.add(block_negatives * (positives.value() + block_positives / 2));
        positives.add(block_positives);
        negatives.add(block_negatives);
        if (block_positives > 0) {
            const double found = positives.value();
            precision.add(block_positives * (found / (found + negatives.value())));
        }
    }
};

// Calls use(positives, negatives, number, number of positives) for each block of equal scores, best first;
// the first two are sums of weights.
template <typename Item, typename Use>
void blocks(Span<const Item> items, const Use& use) {
    for (std::size_t end = items.size(); end > 0;) {
        const std::uint32_t key = items[end - 1].key;
        Sum positives, negatives;
        std::size_t begin = end, num_positives = 0;
        for (; begin > 0 && items[begin - 1].key == key; --begin) {
            const Item& item = items[begin - 1];
            (item.positive() ? positives : negatives).add(item.weight());
            num_positives += item.positive();
        }
        use(positives.value(), negatives.value(), end - begin, num_positives);
        end = begin;
    }
}

// What ranks below each number are worth together: 1 / log2(rank + 1) of rank 1 and on.
std::vector<double> discounts(Span<const std::uint64_t> ks, std::size_t num_samples) {
    std::uint64_t most = 0;
    for (const std::uint64_t k : ks) most = std::max(most, k);
    std::vector<double> sums(std::min<std::uint64_t>(most, num_samples) + 1);
    Sum sum;
    for (std::size_t rank = 1; rank < sums.size(); ++rank) {
        sum.add(1.0 / std::log2(static_cast<double>(rank) + 1.0));
        sums[rank] = sum.value();
    }
    return sums;
}

struct TopSums {
    Sum recall, ndcg;
};

struct GroupSums {
    explicit GroupSums(std::size_t num_ks) : top(num_ks) {}

    template <typename Item>
    void add(Span<const Item> items, Span<const std::uint64_t> ks, const std::vector<double>& worth) {
        ++num_groups;
        std::size_t all_positives = 0;
        if (!ks.empty()) {
            for (const Item& item : items) all_positives += item.positive();
        }
        Walk walk;
        std::vector<std::pair<double, double>>& found = found_;
        found.assign(ks.size(), {0.0, 0.0});
        std::size_t rank = 0;
        blocks(items, [&](double positives, double negatives, std::size_t number, std::size_t hits) {
            walk.add(positives, negatives);
            const double share = static_cast<double>(hits) / static_cast<double>(number);
            for (std::size_t i = 0; hits && i < ks.size(); ++i) {
                if (rank >= ks[i]) continue;
                const std::size_t end = std::min<std::uint64_t>(rank + number, ks[i]);
                // All of the block are among the first k: a whole number.
                found[i].first += end == rank + number ? static_cast<double>(hits)
                                                       : share * static_cast<double>(end - rank);
                found[i].second += share * (worth[end] - worth[rank]);
            }
            rank += number;
        });
        const double positives = walk.positives.value(), negatives = walk.negatives.value();
        if (positives > 0 && negatives > 0) {
            const double auc = walk.pairs.value() / (positives * negatives);
            const double all = positives + negatives;
            samples.add(all);
            of_samples.add(all * auc);
            of_groups.add(auc);
            clicks.add(positives);
            of_clicks.add(positives * auc);
        } else {
            ++num_one_class;
        }
        num_without_positive += !(positives > 0);
        for (std::size_t i = 0; all_positives && i < ks.size(); ++i) {
            const std::size_t best = std::min<std::uint64_t>(all_positives, ks[i]);
            top[i].recall.add(found[i].first / static_cast<double>(all_positives));
            top[i].ndcg.add(found[i].second / worth[best]);
        }
    }

    void add(const GroupSums& other) {
        num_groups += other.num_groups;
        num_one_class += other.num_one_class;
        num_without_positive += other.num_without_positive;
        samples.add(other.samples);
        of_samples.add(other.of_samples);
        of_groups.add(other.of_groups);
        clicks.add(other.clicks);
        of_clicks.add(other.of_clicks);
        for (std::size_t i = 0; i < top.size(); ++i) {
            top[i].recall.add(other.top[i].recall);
            top[i].ndcg.add(other.top[i].ndcg);
        }
    }

    std::size_t num_groups = 0, num_one_class = 0, num_without_positive = 0;
    Sum samples, of_samples, of_groups, clicks, of_clicks;
    std::vector<TopSums> top;

  private:
    std::vector<std::pair<double, double>> found_;  // hits and gain of each k, of one group
};

// Over items in the order of their groups and, in each, of their scores.
template <typename Item>
GroupSums over_groups(Span<const Item> items, Span<const std::uint64_t> ks, ThreadTeam& team) {
    constexpr std::size_t kParts = 64;  // whatever the number of threads, so that sums are the same
    const std::size_t n = items.size();
    const auto worth = discounts(ks, n);
    std::vector<GroupSums> parts(kParts, GroupSums(ks.size()));
    // The first item of the first group that begins in part `p` or later.
    const auto begin_of = [&](std::size_t p) {
        std::size_t begin = n * p / kParts;
        while (begin > 0 && begin < n && items[begin].group() == items[begin - 1].group()) ++begin;
        return begin;
    };
    team.run([&](unsigned thread) {
        for (std::size_t p = thread; p < kParts; p += team.size()) {
            const std::size_t last = begin_of(p + 1);
            for (std::size_t begin = begin_of(p), end; begin < last; begin = end) {
                end = begin + 1;
                while (end < n && items[end].group() == items[begin].group()) ++end;
                parts[p].add(items.slice(begin, end), ks, worth);
            }
        }
    });
    for (std::size_t p = 1; p < kParts; ++p) parts[0].add(parts[p]);
    return std::move(parts[0]);
}

double ratio(double of, double to) { return to > 0 ? of / to : 0.0; }

template <typename Item>
RankMetrics compute(const ScoredSamples& samples, Span<const std::uint64_t> ks, ThreadTeam& team) {
    constexpr std::uint32_t kMask = (1u << kDigitBits) - 1;
    AlignedArray<Item> first(samples.scores.size()), second(samples.scores.size());
    const std::size_t n = gather(samples, Span<Item>(first));
    Span<Item> items(first.data(), n), other(second.data(), n);
    const auto sort_by = [&](auto digit) {
        if (radix_pass<Item>({items.data(), n}, other, digit, team)) std::swap(items, other);
    };
    for (unsigned shift = 0; shift < 32; shift += kDigitBits)
        sort_by([shift](const Item& item) { return item.key >> shift & kMask; });

    RankMetrics metrics;
    metrics.top.resize(ks.size());
    Walk walk;
    blocks(Span<const Item>(items), [&](double positives, double negatives, std::size_t, std::size_t) {
        walk.add(positives, negatives);
    });
    metrics.positives = walk.positives.value();
    metrics.negatives = walk.negatives.value();
    metrics.auc = ratio(walk.pairs.value(), metrics.positives * metrics.negatives);
    metrics.average_precision = ratio(walk.precision.value(), metrics.positives);
    if (samples.groups.empty()) return metrics;

    for (unsigned shift = 0; shift < 32 && (samples.num_groups - 1) >> shift != 0; shift += kDigitBits)
        sort_by([shift](const Item& item) { return item.group() >> shift & kMask; });
    const GroupSums sums = over_groups(Span<const Item>(items), ks, team);
    metrics.num_groups = sums.num_groups;
    metrics.num_one_class = sums.num_one_class;
    metrics.num_without_positive = sums.num_without_positive;
    metrics.gauc = ratio(sums.of_samples.value(), sums.samples.value());
    metrics.gauc_of_groups =
        ratio(sums.of_groups.value(), static_cast<double>(sums.num_groups - sums.num_one_class));
    metrics.gauc_by_positives = ratio(sums.of_clicks.value(), sums.clicks.value());
    const auto with_positive = static_cast<double>(sums.num_groups - sums.num_without_positive);
    for (std::size_t i = 0; i < ks.size(); ++i)
        metrics.top[i] = {ratio(sums.top[i].recall.value(), with_positive),
                          ratio(sums.top[i].ndcg.value(), with_positive)};
    return metrics;
}

}  // namespace

RankMetrics rank_metrics(const ScoredSamples& samples, Span<const std::uint64_t> ks, ThreadTeam& team) {
    return samples.weight.empty() ? compute<Unweighted>(samples, ks, team)
                                  : compute<Weighted>(samples, ks, team);
}

std::size_t number_groups(Span<const std::int64_t> groups, Span<std::uint32_t> numbers) {
    struct Entry {
        std::int64_t id;
        std::uint32_t number;  // from 1; 0: empty
    };
    constexpr std::size_t kAhead = 16;
    std::vector<Entry> entries(1024, Entry{0, 0});
    std::uint32_t count = 0;
    const auto home = [&](std::int64_t id) {
        return mix(static_cast<std::uint64_t>(id)) & (entries.size() - 1);
    };
    const auto find = [&](std::int64_t id) -> Entry& {
        std::size_t place = home(id);
        while (entries[place].number != 0 && entries[place].id != id)
            place = (place + 1) & (entries.size() - 1);
        return entries[place];
    };
    for (std::size_t i = 0; i < groups.size(); ++i) {
        if (i + kAhead < groups.size()) prefetch_line(&entries[home(groups[i + kAhead])]);
        Entry& entry = find(groups[i]);
        if (entry.number == 0) {
            entry = {groups[i], ++count};
            numbers[i] = count - 1;
            if (2 * std::size_t{count} >= entries.size()) {
                const std::vector<Entry> old = std::exchange(entries, std::vector<Entry>(4 * entries.size()));
                for (const Entry& each : old) {
                    if (each.number != 0) find(each.id) = each;
                }
            }
        } else {
            numbers[i] = entry.number - 1;
        }
    }
    return count;
}

}  // namespace persia
