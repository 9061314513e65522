#include "persia/ranking.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "check.h"

using namespace persia;

namespace {

struct Sample {
    float score, label, weight;
    std::int64_t group;
};

bool close(double a, double b) { return std::abs(a - b) <= 1e-12 * std::max(1.0, std::abs(b)); }

// The share of pairs in the right order, by looking at each pair.
double auc_of(const std::vector<Sample>& samples) {
    double right = 0, all = 0;
    for (const Sample& p : samples) {
        for (const Sample& n : samples) {
            if (p.label == 0 || n.label == 1) continue;
            const double weight = double{p.weight} * n.weight;
            right += weight * (p.score > n.score ? 1.0 : p.score == n.score ? 0.5 : 0.0);
            all += weight;
        }
    }
    return all > 0 ? right / all : 0.0;
}

double sum_of(const std::vector<Sample>& samples, float label) {
    double sum = 0;
    for (const Sample& s : samples) sum += s.label == label ? s.weight : 0.0;
    return sum;
}

RankMetrics compute(const std::vector<Sample>& samples, bool weighted, const std::vector<std::uint64_t>& ks,
                    unsigned threads) {
    std::vector<float> scores, labels;
    std::vector<double> weight;
    std::vector<std::int64_t> groups;
    for (const Sample& s : samples) {
        scores.push_back(s.score);
        labels.push_back(s.label);
        if (weighted) weight.push_back(s.weight);
        groups.push_back(s.group);
    }
    std::vector<std::uint32_t> numbers(groups.size());
    const std::size_t count = number_groups(groups, numbers);
    ThreadTeam team(threads);
    return rank_metrics({scores, labels, weight, numbers, count}, ks, team);
}

void check_groups(const std::vector<Sample>& samples, const RankMetrics& found) {
    std::map<std::int64_t, std::vector<Sample>> groups;
    for (const Sample& s : samples) {
        if (s.weight > 0) groups[s.group].push_back(s);
    }
    double of_samples = 0, num_samples = 0, of_groups = 0, by_positives = 0, num_positives = 0;
    std::size_t used = 0, without_positive = 0;
    for (const auto& [_, mine] : groups) {
        const double positives = sum_of(mine, 1), negatives = sum_of(mine, 0);
        without_positive += positives == 0;
        if (positives == 0 || negatives == 0) continue;
        ++used;
        const double auc = auc_of(mine);
        of_samples += (positives + negatives) * auc;
        num_samples += positives + negatives;
        of_groups += auc;
        by_positives += positives * auc;
        num_positives += positives;
    }
    CHECK(found.num_groups == groups.size());
    CHECK(found.num_one_class == groups.size() - used);
    CHECK(found.num_without_positive == without_positive);
    if (used == 0) return;
    CHECK(close(found.gauc, of_samples / num_samples));
    CHECK(close(found.gauc_of_groups, of_groups / static_cast<double>(used)));
    CHECK(close(found.gauc_by_positives, by_positives / num_positives));
}

bool same(const RankMetrics& a, const RankMetrics& b) {
    bool same = a.auc == b.auc && a.average_precision == b.average_precision && a.gauc == b.gauc &&
                a.gauc_of_groups == b.gauc_of_groups && a.gauc_by_positives == b.gauc_by_positives;
    for (std::size_t i = 0; i < a.top.size(); ++i)
        same = same && a.top[i].recall == b.top[i].recall && a.top[i].ndcg == b.top[i].ndcg;
    return same;
}

void test_against_pairs() {
    std::mt19937_64 random(1);
    for (int round = 0; round < 300; ++round) {
        const bool weighted = round % 2;
        const std::size_t levels = 1 + random() % 40, num_groups = 1 + random() % 12;
        std::vector<Sample> samples(random() % 150);
        for (Sample& s : samples) {
            s.score = (static_cast<float>(random() % levels) - 3.0f) * (random() % 2 ? 0.7f : -0.7f);
            s.label = static_cast<float>(random() % 3 == 0);
            s.weight = weighted ? static_cast<float>(random() % 5) / 3.0f : 1.0f;
            s.group = static_cast<std::int64_t>(random() % num_groups) * 0x123456789abcdef - 5;
        }
        const std::vector<std::uint64_t> ks = {1, 3, 1000000};
        const RankMetrics found = compute(samples, weighted, ks, 1);
        CHECK(close(found.auc, auc_of(samples)));
        CHECK(close(found.positives, sum_of(samples, 1)) && close(found.negatives, sum_of(samples, 0)));
        check_groups(samples, found);
        CHECK(found.top.size() == 3);
        CHECK(same(found, compute(samples, weighted, ks, 3)));
    }
}

// One group, all scores different: ranks are what they are.
void test_first_places() {
    const std::vector<Sample> samples = {
        {4, 0, 1, 7}, {3, 1, 9, 7}, {2, 1, 1, 7}, {1, 0, 1, 7}, {0, 1, 1, 7}};
    const RankMetrics found = compute(samples, true, {1, 2, 5}, 2);
    const double second = 1 / std::log2(3.0), third = 0.5, fifth = 1 / std::log2(6.0);
    CHECK(found.top[0].recall == 0 && found.top[0].ndcg == 0);
    CHECK(close(found.top[1].recall, 1 / 3.0) && close(found.top[1].ndcg, second / (1 + second)));
    CHECK(found.top[2].recall == 1);
    CHECK(close(found.top[2].ndcg, (second + third + fifth) / (1 + second + third)));
}

// More groups than one digit counts, and samples for several threads.
void test_many_groups() {
    std::mt19937_64 random(2);
    std::vector<Sample> samples(40000);
    for (Sample& s : samples) {
        s.score = static_cast<float>(random() % 1000) / 999.0f;
        s.label = static_cast<float>(random() % 2);
        s.weight = 1;
        s.group = static_cast<std::int64_t>(random() % 9000);
    }
    const RankMetrics found = compute(samples, false, {2}, 4);
    check_groups(samples, found);
    CHECK(same(found, compute(samples, false, {2}, 1)));
    // A zero with a sign is a zero.
    CHECK(compute({{0.0f, 0, 1, 1}, {-0.0f, 1, 1, 1}}, false, {}, 1).auc == 0.5);
}

}  // namespace

int main() {
    test_against_pairs();
    test_first_places();
    test_many_groups();
    return 0;
}
