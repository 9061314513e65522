// A table as a plain map of rows, for tests of what table.h promises, and calls on tables in terms of
// vectors.
//
// It knows no slots: a gradient reaches a row if the row is there and came no later than its pull.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <unordered_map>
#include <vector>

#include "persia/table.h"

namespace persia {

struct Pulled {
    std::vector<Key> keys;
    std::vector<float> rows;  // [U, D]
    std::vector<std::uint32_t> slots;
    std::uint32_t epoch = 0;
};

inline Rows as_fp32(std::vector<float>& rows, std::size_t count) {
    return {reinterpret_cast<std::byte*>(rows.data()), Wire::kFp32, count};
}
inline ConstRows as_fp32(const std::vector<float>& rows, std::size_t count) {
    return {reinterpret_cast<const std::byte*>(rows.data()), Wire::kFp32, count};
}

inline Pulled pull(Table& table, const std::vector<Key>& keys, std::uint32_t step) {
    Pulled pulled{keys, std::vector<float>(keys.size() * table.dim()),
                  std::vector<std::uint32_t>(keys.size())};
    pulled.epoch = table.pull(keys, step, as_fp32(pulled.rows, keys.size()), pulled.slots);
    return pulled;
}

inline std::vector<float> lookup(const Table& table, const std::vector<Key>& keys) {
    std::vector<float> rows(keys.size() * table.dim());
    table.lookup(keys, as_fp32(rows, keys.size()));
    return rows;
}

// Points into both.
inline PushBatch batch_of(const Pulled& pulled, const std::vector<float>& gradients) {
    return {pulled.keys, pulled.slots, as_fp32(gradients, pulled.keys.size()), pulled.epoch};
}

inline ImportedRows imported(const ExportedRows& rows) {
    return {rows.keys, rows.rows, rows.state, rows.stamps, rows.steps, true};
}

// Some `n` of the keys of ids below `num_ids`, in order.
inline std::vector<Key> some_keys(std::mt19937_64& random, std::size_t n, std::uint64_t num_ids) {
    std::vector<Key> keys;
    for (std::size_t i = 0; i < n; ++i) keys.push_back(mix(random() % num_ids));
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    return keys;
}

inline std::vector<float> some_gradients(std::mt19937_64& random, std::size_t size) {
    std::normal_distribution<float> normal;
    std::vector<float> gradients(size);
    for (float& gradient : gradients) gradient = normal(random);
    return gradients;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline bool same_rows(const ExportedRows& a, const ExportedRows& b) {
    return a.keys == b.keys && a.stamps == b.stamps && a.steps == b.steps && same_bits(a.rows, b.rows) &&
           same_bits(a.state, b.state);
}

inline bool same_counts(const PushCounts& a, const PushCounts& b) {
    return a.applied == b.applied && a.evicted_in_flight == b.evicted_in_flight &&
           a.unadmitted == b.unadmitted && a.nonfinite == b.nonfinite;
}

// fp32, lru, every key admitted; first values are RowInit's and updates the optimizer's, which have tests of
// their own.
class ModelTable {
  public:
    explicit ModelTable(const TableConfig& config)
        : config_(config),
          optimizer_(make_optimizer(config.optimizer, config.options).optimizer),
          init_(config.init, config.init_a, config.init_b, config.seed),
          bucket_of_(config.num_buckets) {}

    std::vector<float> pull(const std::vector<Key>& keys, std::uint32_t step) {
        for (const Key key : keys) {
            const auto [row, is_new] = rows_.try_emplace(key);
            if (is_new) start(key, row->second);
            row->second.stamp = std::max(row->second.stamp, step);
        }
        return lookup(keys);
    }

    std::vector<float> lookup(const std::vector<Key>& keys) const {
        std::vector<float> out;
        for (const Key key : keys) {
            const auto found = rows_.find(key);
            if (found == rows_.end()) {
                out.insert(out.end(), config_.dim, 0.0f);
            } else {
                out.insert(out.end(), found->second.values.begin(), found->second.values.end());
            }
        }
        return out;
    }

    PushCounts push_step(const std::vector<const Pulled*>& pulls,
                         const std::vector<const std::vector<float>*>& gradients) {
        PushCounts counts;
        std::unordered_map<Key, std::vector<float>> sums;
        for (std::size_t batch = 0; batch < pulls.size(); ++batch) {
            for (std::size_t i = 0; i < pulls[batch]->keys.size(); ++i) {
                const Key key = pulls[batch]->keys[i];
                const float* const begin = gradients[batch]->data() + i * config_.dim;
                const auto row = rows_.find(key);
                if (row == rows_.end() || row->second.epoch > pulls[batch]->epoch) {
                    ++counts.evicted_in_flight;
                } else if (!std::all_of(begin, begin + config_.dim,
                                        [](float x) { return std::isfinite(x); })) {
                    ++counts.nonfinite;
                } else {
                    ++counts.applied;
                    std::vector<float>& sum = sums[key];
                    if (sum.empty()) {
                        sum.assign(begin, begin + config_.dim);
                    } else {
                        for (std::uint32_t d = 0; d < config_.dim; ++d) sum[d] += begin[d];
                    }
                }
            }
        }
        for (const auto& [key, sum] : sums) {
            Row& row = rows_.at(key);
            std::visit(
                [&](auto& kind) { kind.apply(row.values.data(), row.state.data(), sum.data(), config_.dim); },
                optimizer_);
        }
        return counts;
    }

    std::uint64_t evict() {
        std::uint64_t evicted = 0;
        for (std::uint32_t bucket = 0; bucket < config_.num_buckets; ++bucket) {
            std::vector<Key> keys = keys_of(bucket);
            std::sort(keys.begin(), keys.end(), [&](Key a, Key b) {
                return std::pair(rows_[a].stamp, a) < std::pair(rows_[b].stamp, b);
            });
            for (std::size_t i = 0; i + config_.bucket_capacity < keys.size(); ++i, ++evicted) {
                rows_.erase(keys[i]);
            }
        }
        ++epoch_;
        return evicted;
    }

    ExportedRows export_bucket(std::uint32_t bucket) const {
        ExportedRows out;
        out.keys = keys_of(bucket);
        std::sort(out.keys.begin(), out.keys.end());
        const std::size_t width = state_width(optimizer_, config_.dim);
        for (const Key key : out.keys) {
            const Row& row = rows_.at(key);
            out.stamps.push_back(row.stamp);
            out.rows.insert(out.rows.end(), row.values.begin(), row.values.end());
            out.state.insert(out.state.end(), row.state.begin(),
                             row.state.begin() + static_cast<std::ptrdiff_t>(width));
            if (!has_steps(optimizer_)) continue;
            out.steps.emplace_back();
            std::memcpy(&out.steps.back(), &row.state[width], sizeof(std::uint32_t));
        }
        return out;
    }

    std::size_t num_rows() const { return rows_.size(); }

  private:
    struct Row {
        std::vector<float> values, state;  // and behind the state the count of updates
        std::uint32_t stamp = 0, epoch = 0;
    };

    void start(Key key, Row& row) {
        row.values.resize(config_.dim);
        init_.fill(key, row.values.data(), config_.dim);
        row.state.resize(state_words(optimizer_, config_.dim));
        std::visit([&](const auto& kind) { kind.init(row.state.data(), config_.dim); }, optimizer_);
        row.epoch = epoch_;
    }

    std::vector<Key> keys_of(std::uint32_t bucket) const {
        std::vector<Key> keys;
        for (const auto& each : rows_) {
            if (bucket_of_(each.first) == bucket) keys.push_back(each.first);
        }
        return keys;
    }

    TableConfig config_;
    Optimizer optimizer_;
    RowInit init_;
    BucketOf bucket_of_;
    std::unordered_map<Key, Row> rows_;
    std::uint32_t epoch_ = 0;
};

}  // namespace persia
