#include "persia/silu_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "multiply.h"
#include "panels.h"
#include "persia/aligned_array.h"
#include "sigmoid.h"

namespace persia {
namespace {

constexpr std::size_t kQueries = 2 * kPanel;  // of the backward at a time

// Zeros in place of what lies behind `last` of values that begin at place 0.
Lanes until_place(const Lanes& x, std::ptrdiff_t last) {
    constexpr Places kNumbers{0, 1, 2, 3, 4, 5, 6, 7};
    const int bound = static_cast<int>(std::clamp<std::ptrdiff_t>(last, -1, kLanes));
    return kNumbers <= bound ? x : Lanes{};
}

// One sequence's part of an array [N, parts, H, D].
struct Rows {
    const float* data;
    std::size_t stride;
};

// Its rows as panels of kPanel rows: [panels][D][kPanel].
void across(Rows rows, std::size_t length, std::size_t dim, float* to) {
    for (std::size_t begin = 0; begin < length; begin += kPanel, to += dim * kPanel) {
        const std::size_t count = std::min(kPanel, length - begin);
        if (count < kPanel) std::fill_n(to, dim * kPanel, 0.0f);
        transpose(rows.data + begin * rows.stride, rows.stride, count, dim, to, kPanel);
    }
}

// Its columns as panels of kPanel columns: [panels of D][room][kPanel], with zeros behind the last row.
void along(Rows rows, std::size_t length, std::size_t dim, std::size_t room, float* to) {
    for (std::size_t column = 0; column < dim; column += kPanel, to += room * kPanel) {
        const std::size_t count = std::min(kPanel, dim - column);
        std::fill_n(to + length * kPanel, (room - length) * kPanel, 0.0f);
        for (std::size_t row = 0; row < length; ++row) {
            float* const at = to + row * kPanel;
            if (count < kPanel) std::fill_n(at, kPanel, 0.0f);
            std::copy_n(rows.data + row * rows.stride + column, count, at);
        }
    }
}

// Back from panels of columns.
void back(const float* from, std::size_t length, std::size_t dim, std::size_t room, float* to,
          std::size_t stride) {
    for (std::size_t column = 0; column < dim; column += kPanel, from += room * kPanel)
        for (std::size_t row = 0; row < length; ++row)
            std::copy_n(from + row * kPanel, std::min(kPanel, dim - column), to + row * stride + column);
}

// What all threads read: the biases of distances, from the largest to 0, and room to read beyond.
struct Shared {
    explicit Shared(const SiluAttention& attention)
        : attention(attention), backwards(attention.positions.size() + 4 * kPanel) {
        std::fill(backwards.data(), backwards.data() + backwards.size(), 0.0f);
        std::reverse_copy(attention.positions.begin(), attention.positions.end(), backwards.data());
    }
    const SiluAttention& attention;
    AlignedArray<float> backwards;
};

// Attention of one thread, sequence by sequence.
class Worker {
  public:
    Worker(const Shared& shared, std::size_t longest)
        : shared_(shared),
          attention_(shared.attention),
          room_(whole_panels(longest) * kPanel),
          width_(whole_panels(attention_.dim) * kPanel),
          strip_(room_ * kQueries),
          weights_(kPanel * kQueries),
          across_k_(room_ * attention_.dim),
          across_v_(room_ * attention_.dim),
          along_v_(room_ * width_),
          buckets_(attention_.times.empty() ? 0 : room_ * kQueries) {}

    void forward(std::size_t sequence, float* out) {
        begin(sequence);
        const std::size_t stride = attention_.num_heads * attention_.dim;
        for (std::size_t head = 0; head < attention_.num_heads; ++head) {
            const Rows q = part(1, head);
            across(part(2, head), length_, attention_.dim, across_k_.data());
            along(part(0, head), length_, attention_.dim, room_, along_v_.data());
            for_tiles(length_, [&](auto rows, std::size_t i) {
                const std::size_t panels = whole_panels(i + rows());
                find_buckets(i, rows());
                for (std::size_t p = 0; p < panels; ++p) {
                    Sums<rows()> scores = dot<rows()>(q, i, across_k_.data(), p);
                    each(
                        scores,
                        [&](Lanes& x, std::size_t r, std::size_t j) {
                            x = attention_.scale * x + bias(i, r, j);
                            x = until_place(x * sigmoid(x) * inverse(), place(i + r, j));
                        },
                        p);
                    scores.store(strip_.data() + p * rows() * kPanel);
                }
                float made[rows() * kPanel];
                for (std::size_t column = 0; column < attention_.dim; column += kPanel) {
                    Sums<rows()> sums{};
                    for (std::size_t p = 0; p < panels; ++p)
                        sums.add({strip_.data() + p * rows() * kPanel, kPanel, 1}, kPanel,
                                 along_v_.data() + (column * room_ / kPanel + p * kPanel) * kPanel);
                    sums.store(made);
                    for (std::size_t r = 0; r < rows(); ++r)
                        std::copy_n(made + r * kPanel, std::min(kPanel, attention_.dim - column),
                                    out + (first_ + i + r) * stride + head * attention_.dim + column);
                }
            });
        }
    }

  protected:
    void begin(std::size_t sequence) {
        first_ = static_cast<std::size_t>(attention_.offsets[sequence]);
        length_ = static_cast<std::size_t>(attention_.offsets[sequence + 1]) - first_;
    }

    // Part 0, 1 or 2 (v, q, k) of the sequence's events.
    Rows part(std::size_t number, std::size_t head) const {
        const std::size_t inner = attention_.num_heads * attention_.dim;
        return {attention_.vqk.data() + first_ * 3 * inner + number * inner + head * attention_.dim,
                3 * inner};
    }

    float inverse() const { return 1.0f / attention_.divisor; }

    // How far behind place j a query at i sees.
    static std::ptrdiff_t place(std::size_t i, std::size_t j) {
        return static_cast<std::ptrdiff_t>(i) - static_cast<std::ptrdiff_t>(j);
    }

    // Products of rows from i with those of panel p.
    template <std::size_t kRows>
    Sums<kRows> dot(Rows left, std::size_t i, const float* panels, std::size_t p) const {
        Sums<kRows> sums{};
        sums.add({left.data + i * left.stride, left.stride, 1}, attention_.dim,
                 panels + p * attention_.dim * kPanel);
        return sums;
    }

    // use(lanes, row, place of the first lane) for all sums of panel p.
    template <std::size_t kRows, typename Use>
    static void each(Sums<kRows>& sums, const Use& use, std::size_t p) {
        for (std::size_t r = 0; r < kRows; ++r) {
            use(sums.low[r], r, p * kPanel);
            use(sums.high[r], r, p * kPanel + kLanes);
        }
    }

    // Of row r of those from i, for places from j.
    Lanes bias(std::size_t i, std::size_t r, std::size_t j) const {
        Lanes sum{};
        if (!attention_.positions.empty())
            sum = load(shared_.backwards.data() + attention_.positions.size() - 1 - (i + r) + j);
        if (!attention_.times.empty())
            for (std::size_t lane = 0; lane < kLanes; ++lane)
                sum[lane] += attention_.times[buckets_[r * room_ + j + lane]];
        return sum;
    }

    // The buckets of `rows` rows from i. Times mostly rise, so the next one's is the same or close by.
    void find_buckets(std::size_t i, std::size_t rows) {
        if (attention_.times.empty()) return;
        const double* const since = attention_.since.data() + first_;
        const Span<const double> edges = attention_.edges;
        for (std::size_t r = 0; r < rows; ++r) {
            const double until = attention_.until[first_ + i + r];
            std::uint32_t* const to = buckets_.data() + r * room_;
            std::uint32_t bucket = 0;
            const std::size_t end = whole_panels(i + rows) * kPanel;
            for (std::size_t j = i + r + 1; j < end; ++j) to[j] = 0;
            for (std::size_t j = i + r + 1; j-- > 0;) {
                const double apart = std::fabs(until - since[j]);
                while (bucket > 0 && apart < edges[bucket - 1]) --bucket;
                while (bucket < edges.size() && apart >= edges[bucket]) ++bucket;
                to[j] = bucket;
            }
        }
    }

    const Shared& shared_;
    const SiluAttention& attention_;
    const std::size_t room_, width_;
    std::size_t first_ = 0, length_ = 0;
    AlignedArray<float> strip_, weights_, across_k_, across_v_, along_v_;
    AlignedArray<std::uint32_t> buckets_;
};

// The backward of one thread.
class Backward : Worker {
  public:
    Backward(const Shared& shared, std::size_t longest, Span<const float> gradient,
             const SiluAttentionGradients& to, Span<float> by_distance, Span<float> by_time)
        : Worker(shared, longest),
          gradient_(gradient),
          to_(to),
          by_distance_(by_distance),
          by_time_(by_time),
          along_q_(room_ * width_),
          along_k_(room_ * width_),
          along_gradient_(room_ * width_),
          of_k_(room_ * width_),
          of_v_(room_ * width_),
          distances_(room_ + 4 * kPanel) {}

    void run(std::size_t sequence) {
        begin(sequence);
        const std::size_t dim = attention_.dim, inner = attention_.num_heads * dim;
        std::fill_n(distances_.data(), length_ + 4 * kPanel, 0.0f);
        times_ = attention_.times.empty() ? nullptr : by_time_.data() + sequence * attention_.times.size();
        for (std::size_t head = 0; head < attention_.num_heads; ++head) {
            q_ = part(1, head);
            out_ = {gradient_.data() + first_ * inner + head * dim, inner};
            across(part(2, head), length_, dim, across_k_.data());
            across(part(0, head), length_, dim, across_v_.data());
            along(part(2, head), length_, dim, room_, along_k_.data());
            along(q_, length_, dim, room_, along_q_.data());
            along(out_, length_, dim, room_, along_gradient_.data());
            std::fill_n(of_k_.data(), room_ * width_, 0.0f);
            std::fill_n(of_v_.data(), room_ * width_, 0.0f);
            float* const to = to_.vqk.data() + first_ * 3 * inner + head * dim;
            for (std::size_t i = 0; i < length_; i += kQueries)
                queries(i, std::min(kQueries, length_ - i), to + inner);
            back(of_v_.data(), length_, dim, room_, to, 3 * inner);
            back(of_k_.data(), length_, dim, room_, to + 2 * inner, 3 * inner);
        }
        if (!attention_.positions.empty())
            std::copy_n(distances_.data(), length_, by_distance_.data() + first_);
    }

  private:
    // Adds what `count` queries from `begin` pass back; that of the queries goes `to` their part.
    void queries(std::size_t begin, std::size_t count, float* to) {
        const std::size_t panels = whole_panels(begin + count), dim = attention_.dim;
        find_buckets(begin, count);
        for (std::size_t p = 0; p < panels; ++p) {
            float* const slopes = strip_.data() + p * kQueries * kPanel;
            for_tiles(count, [&](auto rows, std::size_t i) { slopes_of<rows()>(begin, i, p, slopes); });
            for (std::size_t column = 0; column < width_; column += kPanel) {
                const std::size_t at = column * room_;
                const auto keys = [&](auto rows, std::size_t j) {
                    add_sums<rows()>(weights_.data() + j, count, along_gradient_.data() + at + begin * kPanel,
                                     of_v_.data() + at + (p * kPanel + j) * kPanel);
                    add_sums<rows()>(slopes + j, count, along_q_.data() + at + begin * kPanel,
                                     of_k_.data() + at + (p * kPanel + j) * kPanel);
                };
                static_assert(kPanel == 16);
                keys(Size<6>(), 0), keys(Size<6>(), 6), keys(Size<4>(), 12);
            }
        }
        for (std::size_t column = 0; column < dim; column += kPanel) {
            for_tiles(count, [&](auto rows, std::size_t i) {
                Sums<rows()> sums{};
                for (std::size_t p = 0; p < panels; ++p)
                    sums.add({strip_.data() + (p * kQueries + i) * kPanel, kPanel, 1}, kPanel,
                             along_k_.data() + column * room_ + p * kPanel * kPanel);
                float made[rows() * kPanel];
                sums.store(made);
                for (std::size_t r = 0; r < rows(); ++r)
                    std::copy_n(made + r * kPanel, std::min(kPanel, dim - column),
                                to + (begin + i + r) * 3 * attention_.num_heads * dim + column);
            });
        }
    }

    // The weights of queries from begin + i at panel p, and the gradients of their products with keys.
    template <std::size_t kRows>
    void slopes_of(std::size_t begin, std::size_t i, std::size_t p, float* slopes) {
        Sums<kRows> scores = dot<kRows>(q_, begin + i, across_k_.data(), p);
        Sums<kRows> passed = dot<kRows>(out_, begin + i, across_v_.data(), p);
        const auto both = [&](Lanes& score, Lanes& pass, std::size_t r, std::size_t j) {
            const std::ptrdiff_t last = place(begin + i + r, j);
            const Lanes x = attention_.scale * score + bias(begin, i + r, j);
            const Lanes gate = sigmoid(x);
            score = until_place(x * gate * inverse(), last);
            pass = until_place(pass * inverse() * (gate + x * gate * (1.0f - gate)), last);
            if (!attention_.positions.empty()) {
                float* const at = distances_.data() + length_ - 1 - (begin + i + r) + j;
                store(at, load(at) + pass);
            }
            if (times_ != nullptr && last >= 0)
                for (std::size_t lane = 0; lane < kLanes; ++lane)
                    times_[buckets_[(i + r) * room_ + j + lane]] += pass[lane];
            pass *= attention_.scale;
        };
        for (std::size_t r = 0; r < kRows; ++r) {
            both(scores.low[r], passed.low[r], r, p * kPanel);
            both(scores.high[r], passed.high[r], r, p * kPanel + kLanes);
        }
        scores.store(weights_.data() + i * kPanel);
        passed.store(slopes + i * kPanel);
    }

    // Adds left [queries, kRows of kPanel] transposed times right [queries, kPanel] to `to`.
    template <std::size_t kRows>
    static void add_sums(const float* left, std::size_t queries, const float* right, float* to) {
        Sums<kRows> sums;
        sums.load(to);
        sums.add({left, 1, kPanel}, queries, right);
        sums.store(to);
    }

    Span<const float> gradient_;
    const SiluAttentionGradients& to_;
    Span<float> by_distance_, by_time_;
    AlignedArray<float> along_q_, along_k_, along_gradient_, of_k_, of_v_, distances_;
    Rows q_{}, out_{};
    float* times_ = nullptr;
};

// work(sequence) for all of them by the threads of the team, the longest first. make: of a thread's worker,
// for sequences of so many events at most.
template <typename Make, typename Run>
void for_sequences(const SiluAttention& attention, ThreadTeam& team, const Make& make, const Run& run) {
    const auto length = [&](std::size_t b) { return attention.offsets[b + 1] - attention.offsets[b]; };
    std::vector<std::size_t> order(attention.offsets.size() - 1);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return length(a) > length(b); });
    while (!order.empty() && length(order.back()) == 0) order.pop_back();
    if (order.empty()) return;
    std::atomic<std::size_t> next{0};
    team.run([&](unsigned) {
        auto worker = make(static_cast<std::size_t>(length(order.front())));
        for (std::size_t i; (i = next.fetch_add(1)) < order.size();) run(worker, order[i]);
    });
}

}  // namespace

void silu_attention_forward(const SiluAttention& attention, Span<float> out, ThreadTeam& team) {
    const Shared shared(attention);
    for_sequences(
        attention, team, [&](std::size_t longest) { return Worker(shared, longest); },
        [&](Worker& worker, std::size_t sequence) { worker.forward(sequence, out.data()); });
}

void silu_attention_backward(const SiluAttention& attention, Span<const float> gradient,
                             const SiluAttentionGradients& to, ThreadTeam& team) {
    const Shared shared(attention);
    const std::size_t num_sequences = attention.offsets.size() - 1, num_times = attention.times.size();
    // Of each sequence, to be added in their order: by distance, from its largest to 0, and by bucket.
    AlignedArray<float> by_distance(attention.positions.empty() ? 0 : attention.num_events());
    AlignedArray<float> by_time(num_sequences * num_times);
    std::fill(by_time.data(), by_time.data() + by_time.size(), 0.0f);
    for_sequences(
        attention, team,
        [&](std::size_t longest) {
            return Backward(shared, longest, gradient, to, {by_distance.data(), by_distance.size()},
                            {by_time.data(), by_time.size()});
        },
        [](Backward& worker, std::size_t sequence) { worker.run(sequence); });
    std::fill(to.positions.begin(), to.positions.end(), 0.0f);
    std::fill(to.times.begin(), to.times.end(), 0.0f);
    for (std::size_t b = 0; b < num_sequences; ++b) {
        const auto begin = static_cast<std::size_t>(attention.offsets[b]);
        const auto end = static_cast<std::size_t>(attention.offsets[b + 1]);
        if (!to.positions.empty())
            for (std::size_t i = begin; i < end; ++i) to.positions[end - 1 - i] += by_distance[i];
        add(to.times.data(), by_time.data() + b * num_times, num_times);
    }
}

}  // namespace persia
