// Metrics of a ranking: how well scores put the samples with label 1 before those with label 0, over all of
// them and within groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/aligned_array.h"
#include "persia/span.h"
#include "persia/thread_team.h"

namespace persia {

// N samples. Labels are 0 or 1, scores aren't NaN, weights aren't negative; a sample with weight 0 counts
// nowhere.
struct ScoredSamples {
    Span<const float> scores, labels;
    Span<const double> weight;         // none: each counts once
    Span<const std::uint32_t> groups;  // below num_groups; none: groups aren't asked for
    std::size_t num_groups = 0;
};

// Means over groups of what is among the first k of each group; equal scores stand for the mean over all
// their orders.
struct TopMeans {
    double recall = 0, ndcg = 0;
};

// A mean without a group, and an area without positives or negatives, is 0.
struct RankMetrics {
    double positives = 0, negatives = 0;  // sums of weights
    double auc = 0;                       // area under the ROC curve, ties counted half
    double average_precision = 0;         // area under the steps of precision over recall

    std::size_t num_groups = 0;            // with any sample
    std::size_t num_one_class = 0;         // of them: without positives or without negatives
    std::size_t num_without_positive = 0;  // of them
    // Mean AUC of the groups with both classes, weighted by their samples, each once, by their positives.
    double gauc = 0, gauc_of_groups = 0, gauc_by_positives = 0;
    std::vector<TopMeans> top;  // of each k, over the groups with a positive; weights count only if 0
};

// The same for any number of threads, to the last bit.
RankMetrics rank_metrics(const ScoredSamples& samples, Span<const std::uint64_t> ks, ThreadTeam& team);

// Replaces the ids of groups by numbers from 0 in the order of their first sample; returns how many there
// are.
std::size_t number_groups(Span<const std::int64_t> groups, Span<std::uint32_t> numbers);

}  // namespace persia
