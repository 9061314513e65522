#include "persia/pool.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"

using namespace persia;

using Bags = Span<const uint32_t>;

std::byte* bytes_of(std::vector<float>& values) { return reinterpret_cast<std::byte*>(values.data()); }

// A random batch of one group with every kind of feature. Ids that belong to other groups
// lie between the features, and the last rows are never used.
struct Case {
    Case(std::mt19937& random, size_t dim, size_t num_samples) : rows(40 * dim) {
        std::normal_distribution<float> normal;
        for (float& x : rows) x = normal(random);
        group = {dim, num_samples, {}};
        size_t begin = 3;
        bags.resize(6);
        const Pooling poolings[] = {Pooling::kSum,   Pooling::kSum,      Pooling::kMean,
                                    Pooling::kSqrtn, Pooling::kSequence, Pooling::kSequence};
        for (size_t f = 0; f < 6; ++f) {
            const bool one_hot = f == 0 || f == 5;
            bags[f] = {0};
            for (size_t b = 0; b < num_samples; ++b) {
                bags[f].push_back(bags[f].back() + static_cast<uint32_t>(one_hot ? 1 : random() % 4));
            }
            const size_t end = begin + bags[f].back();
            group.features.push_back({begin, end, one_hot ? Bags() : Bags(bags[f]), poolings[f]});
            begin = end + random() % 3;
        }
        indices.resize(begin, 65535);
        for (const PoolFeature& feature : group.features) {
            for (size_t i = feature.begin; i < feature.end; ++i)
                indices[i] = static_cast<uint16_t>(random() % 30);
        }
        length4 = group.longest(group.features[4]);
        pooled.resize(num_samples * 4 * dim, NAN);
        values4.resize(num_samples * length4 * dim, NAN);
        values5.resize(num_samples * dim, NAN);
        mask4 = std::make_unique<bool[]>(num_samples * length4 + 1);
        mask5 = std::make_unique<bool[]>(num_samples + 1);
        std::fill_n(mask4.get(), num_samples * length4, true);  // as unspecified as fresh memory
    }

    void forward() {
        const size_t num_samples = group.num_samples;
        gather_pool_forward<uint16_t>(group, {bytes_of(rows), Wire::kFp32, 40}, indices, pooled,
                                      {{values4, {mask4.get(), num_samples * length4}, length4},
                                       {values5, {mask5.get(), num_samples}, 1}});
    }

    PoolGroup group;
    std::vector<float> rows;
    std::vector<uint16_t> indices;
    std::vector<std::vector<uint32_t>> bags;
    std::vector<float> pooled, values4, values5;
    std::unique_ptr<bool[]> mask4, mask5;
    size_t length4;
};

bool close(double a, double b) { return std::fabs(a - b) < 1e-5; }

double weight(Pooling pooling, size_t size) {
    return pooling == Pooling::kMean ? 1.0 / size : pooling == Pooling::kSqrtn ? 1 / std::sqrt(size) : 1.0;
}

void forward_and_backward_follow_the_definition() {
    std::mt19937 random(3);
    for (const size_t dim : {1, 2, 3, 8, 16, 17, 32, 64, 128, 1024}) {
        for (const size_t num_samples : {0, 1, 5, 70}) {
            Case c(random, dim, num_samples);
            c.forward();
            std::vector<double> gradient(c.rows.size(),
                                         0.0);  // of sum over outputs of output * (its own value)
            for (size_t f = 0; f < 6; ++f) {
                const PoolFeature& feature = c.group.features[f];
                for (size_t b = 0; b < num_samples; ++b) {
                    const size_t first = c.bags[f][b], size = c.bags[f][b + 1] - first;
                    const size_t length = f == 4 ? c.length4 : f == 5 ? 1 : 0;
                    const bool* const mask = f == 4 ? c.mask4.get() : c.mask5.get();
                    for (size_t d = 0; d < dim; ++d) {
                        double sum = 0;
                        for (size_t i = 0; i < size; ++i) {
                            const size_t at = c.indices[feature.begin + first + i] * dim + d;
                            sum += c.rows[at];
                            if (length) {
                                const std::vector<float>& values = f == 4 ? c.values4 : c.values5;
                                CHECK(values[(b * length + i) * dim + d] == c.rows[at] &&
                                      mask[b * length + i]);
                                gradient[at] += c.rows[at];
                            }
                        }
                        if (length) {
                            for (size_t i = size; i < length; ++i) {
                                const std::vector<float>& values = f == 4 ? c.values4 : c.values5;
                                CHECK(values[(b * length + i) * dim + d] == 0 && !mask[b * length + i]);
                            }
                            continue;
                        }
                        const double scale = size ? weight(feature.pooling, size) : 1.0;
                        const float out = c.pooled[(b * 4 + f) * dim + d];
                        CHECK(close(out, sum * scale));
                        for (size_t i = 0; i < size; ++i) {
                            gradient[c.indices[feature.begin + first + i] * dim + d] += out * scale;
                        }
                    }
                }
            }
            std::vector<float> got(c.rows.size(), NAN);
            const Rows out{bytes_of(got), Wire::kFp32, 40};
            gather_pool_backward<uint16_t>(c.group, c.pooled, {{c.values4, c.length4}, {c.values5, 1}},
                                           c.indices, out);
            for (size_t i = 0; i < got.size(); ++i) CHECK(std::fabs(got[i] - gradient[i]) < 1e-4);
            gather_pool_backward<uint16_t>(c.group, {}, {{{}, c.length4}, {{}, 1}}, c.indices, out);
            for (const float x : got) CHECK(x == 0);
        }
    }
}

// Long rows, so that there are many blocks of them: features whose rows lie apart or overlap, in an order
// that is not that of their rows, and rows that none uses before, between and behind. To the bit, in any wire
// format: a row's sum is that of its gradients in the order of its ids.
void backward_keeps_the_order_of_sums_across_blocks() {
    struct Part {
        uint32_t first, last;
        Pooling pooling;
        bool one_hot;
    };
    const std::vector<Part> parts = {
        {300, 360, Pooling::kSum, false},   {5, 90, Pooling::kMean, false},
        {5, 90, Pooling::kSum, true},       {91, 140, Pooling::kSum, true},
        {120, 180, Pooling::kSqrtn, false}, {200, 290, Pooling::kSum, true},
        {270, 320, Pooling::kSum, true},    {10, 350, Pooling::kSum, false},
        {380, 390, Pooling::kSum, true},    {391, 600, Pooling::kMean, false},
        {601, 620, Pooling::kSum, false},
    };
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const size_t dim = 512, num_rows = 700, num_samples = 40;
    for (const size_t skip : {size_t{7}, parts.size()}) {  // with and without the feature that joins most
        PoolGroup group{dim, num_samples, {}};
        std::vector<std::vector<uint32_t>> bags(parts.size(), {0});
        std::vector<uint32_t> indices;
        for (size_t f = 0; f < parts.size(); ++f) {
            if (f == skip) continue;
            const Part& part = parts[f];
            const size_t begin = indices.size();
            for (size_t b = 0; b < num_samples; ++b) {
                for (size_t i = part.one_hot ? 1 : random() % 5; i > 0; --i) {
                    const uint32_t span = part.last - part.first + 1;
                    indices.push_back(part.first + static_cast<uint32_t>(random() % span));
                }
                bags[f].push_back(static_cast<uint32_t>(indices.size() - begin));
            }
            group.features.push_back(
                {begin, indices.size(), part.one_hot ? Bags() : Bags(bags[f]), part.pooling});
        }
        const size_t num_features = group.features.size();
        std::vector<float> gradient(num_samples * num_features * dim), sums(num_rows * dim, 0.0f);
        for (float& x : gradient) x = normal(random);
        for (size_t f = 0; f < num_features; ++f) {
            const PoolFeature& feature = group.features[f];
            for (size_t b = 0; b < num_samples; ++b) {
                const size_t first = feature.has_bags() ? feature.bags[b] : b;
                const size_t last = feature.has_bags() ? feature.bags[b + 1] : b + 1;
                const float size = static_cast<float>(last - first);
                const float factor = feature.pooling == Pooling::kMean    ? 1.0f / size
                                     : feature.pooling == Pooling::kSqrtn ? 1.0f / std::sqrt(size)
                                                                          : 1.0f;
                for (size_t i = first; i < last; ++i) {
                    for (size_t d = 0; d < dim; ++d) {
                        const float term = gradient[(b * num_features + f) * dim + d] * factor;
                        sums[indices[feature.begin + i] * dim + d] += term;
                    }
                }
            }
        }
        for (const Wire wire : {Wire::kFp32, Wire::kFp16, Wire::kBf16, Wire::kScaledFp16}) {
            with_wire(wire, [&](auto format) {
                const size_t bytes = format.bytes(dim);
                std::vector<std::byte> expected(num_rows * bytes), got(num_rows * bytes, std::byte{255});
                for (size_t u = 0; u < num_rows; ++u)
                    format.encode(sums.data() + u * dim, expected.data() + u * bytes, dim);
                gather_pool_backward<uint32_t>(group, gradient, {}, indices, {got.data(), wire, num_rows});
                CHECK(got == expected);
            });
        }
    }
}

// A weighted sum beside a jagged feature, which share rows: to the bit, sums in the order of their ids.
void weighted_sums_and_jagged_ids_follow_the_definition() {
    std::mt19937 random(6);
    std::normal_distribution<float> normal;
    const size_t num_samples = 9, num_rows = 20;
    for (const size_t dim : {1u, 3u, 8u, 16u, 64u}) {
        std::vector<float> rows(num_rows * dim);
        for (float& x : rows) x = normal(random);
        std::vector<uint32_t> bags{0}, indices;
        for (size_t b = 0; b < num_samples; ++b)
            bags.push_back(bags.back() + static_cast<uint32_t>(random() % 4));
        const size_t middle = bags.back(), end = middle + 2 * middle + 1;
        for (size_t i = 0; i < end; ++i) indices.push_back(static_cast<uint32_t>(random() % num_rows));
        std::vector<float> weights(middle);
        for (float& w : weights) w = normal(random);
        const PoolGroup group{dim,
                              num_samples,
                              {{0, middle, Bags(bags), Pooling::kSum, Span<const float>(weights)},
                               {middle, end, Bags(), Pooling::kJagged}}};
        std::vector<float> pooled(num_samples * dim, NAN), values((end - middle) * dim, NAN);
        gather_pool_forward<uint32_t>(group, {bytes_of(rows), Wire::kFp32, num_rows}, indices, pooled,
                                      {{values, {}, 1}});
        std::vector<float> sums(num_rows * dim, 0.0f), got(num_rows * dim, NAN);
        for (size_t d = 0; d < dim; ++d) {
            for (size_t b = 0; b < num_samples; ++b) {
                float sum = 0.0f;
                for (size_t i = bags[b]; i < bags[b + 1]; ++i) {
                    const float term = rows[indices[i] * dim + d] * weights[i];
                    sum += term;
                }
                CHECK(pooled[b * dim + d] == sum);
                for (size_t i = bags[b]; i < bags[b + 1]; ++i) {
                    const float term = sum * weights[i];
                    sums[indices[i] * dim + d] += term;
                }
            }
            for (size_t i = middle; i < end; ++i) {
                CHECK(values[(i - middle) * dim + d] == rows[indices[i] * dim + d]);
                sums[indices[i] * dim + d] += values[(i - middle) * dim + d];
            }
        }
        gather_pool_backward<uint32_t>(group, pooled, {{values, 1}}, indices,
                                       {bytes_of(got), Wire::kFp32, num_rows});
        CHECK(got == sums);
    }
}

template <typename Error, typename Run>
void throws(const Run& run) {
    bool threw = false;
    try {
        run();
    } catch (const Error&) {
        threw = true;
    }
    CHECK(threw);
}

void bad_input_is_refused() {
    std::mt19937 random(4);
    Case good(random, 4, 6);
    good.forward();
    throws<std::out_of_range>([&] {
        good.indices[good.group.features[0].begin] = 40;
        good.forward();
    });
    throws<std::out_of_range>([&] {
        std::vector<float> out(good.rows.size());
        gather_pool_backward<uint16_t>(good.group, good.pooled, {{{}, good.length4}, {{}, 1}}, good.indices,
                                       {bytes_of(out), Wire::kFp32, 40});
    });
    throws<std::invalid_argument>([&] {
        Case c(random, 4, 6);
        c.group.features[0].end += 1;  // one id too many for one per sample
        c.group.check();
    });
    throws<std::invalid_argument>([&] {
        Case c(random, 4, 6);
        c.bags[1][3] = 1000;
        c.group.check();
    });
    throws<std::invalid_argument>([&] {
        Case c(random, 4, 6);
        std::swap(c.group.features[0], c.group.features[5]);
        c.group.check();
    });
    throws<std::invalid_argument>([&] {
        Case c(random, 4, 6);
        c.group.features[2].weights = {c.rows.data(), c.group.features[2].end - c.group.features[2].begin};
        c.group.check();  // weights of a mean
    });
}

int main() {
    forward_and_backward_follow_the_definition();
    backward_keeps_the_order_of_sums_across_blocks();
    weighted_sums_and_jagged_ids_follow_the_definition();
    bad_input_is_refused();
}
