#include "persia/silu_attention.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "check.h"

using namespace persia;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

bool close(double got, double expected) {
    return std::fabs(got - expected) < 2e-4 * (1 + std::fabs(expected));
}

void check(const Floats& got, const Doubles& expected) {
    CHECK(got.size() == expected.size() + 1 && got.back() == 7);  // nothing is written behind the end
    for (size_t i = 0; i < expected.size(); ++i) CHECK(close(got[i], expected[i]));
}

// A case and what its definition gives, pair by pair in double.
struct Case {
    Case(std::vector<size_t> lengths, size_t heads, size_t dim, bool by_distance, bool by_time)
        : heads(heads), dim(dim), offsets(1, 0) {
        for (const size_t length : lengths)
            offsets.push_back(offsets.back() + static_cast<std::int64_t>(length));
        const auto events = static_cast<size_t>(offsets.back());
        const auto random = [&](auto& to, size_t size) {
            std::normal_distribution<float> normal;
            to.resize(size);
            for (auto& x : to) x = normal(engine);
        };
        random(vqk, events * 3 * heads * dim);
        random(gradient, events * heads * dim);
        if (by_distance) random(positions, *std::max_element(lengths.begin(), lengths.end()));
        if (by_time) {
            random(times, 5);
            edges = {1, 2, 4, 8};
            random(until, events);
            random(since, events);
            for (double& x : since) x *= 6;
        }
    }

    SiluAttention view() const {
        return {heads, dim, scale, divisor, offsets, vqk, positions, times, edges, until, since};
    }

    void run() {
        out.assign(gradient.size(), 0), to_vqk.assign(vqk.size(), 0);
        to_positions.assign(positions.size(), 0), to_times.assign(times.size(), 0);
        for (size_t b = 0; b + 1 < offsets.size(); ++b)
            for (auto i = static_cast<size_t>(offsets[b]); i < static_cast<size_t>(offsets[b + 1]); ++i)
                for (auto j = static_cast<size_t>(offsets[b]); j <= i; ++j)
                    for (size_t h = 0; h < heads; ++h) pair(i, j, h);
    }

    void pair(size_t i, size_t j, size_t h) {
        const auto at = [&](size_t event, size_t part, size_t d) {
            return ((event * 3 + part) * heads + h) * dim + d;
        };
        double x = 0, passed = 0;
        for (size_t d = 0; d < dim; ++d) x += static_cast<double>(vqk[at(i, 1, d)]) * vqk[at(j, 2, d)];
        x *= scale;
        size_t bucket = 0;
        if (!positions.empty()) x += positions[i - j];
        if (!times.empty()) {
            while (bucket < edges.size() && std::fabs(until[i] - since[j]) >= edges[bucket]) ++bucket;
            x += times[bucket];
        }
        const double gate = 1 / (1 + std::exp(-x));
        for (size_t d = 0; d < dim; ++d) {
            const double slope = gradient[(i * heads + h) * dim + d];
            out[(i * heads + h) * dim + d] += x * gate / divisor * vqk[at(j, 0, d)];
            to_vqk[at(j, 0, d)] += x * gate / divisor * slope;
            passed += slope * vqk[at(j, 0, d)] / divisor * (gate + x * gate * (1 - gate));
        }
        for (size_t d = 0; d < dim; ++d) {
            to_vqk[at(i, 1, d)] += passed * scale * vqk[at(j, 2, d)];
            to_vqk[at(j, 2, d)] += passed * scale * vqk[at(i, 1, d)];
        }
        if (!positions.empty()) to_positions[i - j] += passed;
        if (!times.empty()) to_times[bucket] += passed;
    }

    void check_all(unsigned threads) {
        ThreadTeam team(threads);
        const auto room = [](const Doubles& like) { return Floats(like.size() + 1, 7.0f); };
        const auto span = [](Floats& values) { return Span<float>(values.data(), values.size() - 1); };
        Floats got_out = room(out), got_vqk = room(to_vqk);
        Floats got_positions = room(to_positions), got_times = room(to_times);
        silu_attention_forward(view(), span(got_out), team);
        silu_attention_backward(view(), gradient, {span(got_vqk), span(got_positions), span(got_times)},
                                team);
        check(got_out, out), check(got_vqk, to_vqk);
        check(got_positions, to_positions), check(got_times, to_times);
    }

    static inline std::mt19937 engine{1};
    size_t heads, dim;
    float scale = 0.7f, divisor = 5;
    std::vector<std::int64_t> offsets;
    Floats vqk, gradient, positions, times;
    Doubles edges, until, since;
    Doubles out, to_vqk, to_positions, to_times;
};

int main() {
    for (const bool by_distance : {false, true}) {
        for (const bool by_time : {false, true}) {
            for (const size_t dim : {1, 8, 16, 25, 40}) {
                Case each({0, 1, 5, 16, 0, 17, 33, 50, 71}, 2, dim, by_distance, by_time);
                each.run();
                each.check_all(1);
                each.check_all(3);
            }
        }
    }
    // Years before the last event a second still counts: in float all of these would be one time.
    Case old({40}, 1, 4, false, true);
    for (size_t i = 0; i < old.since.size(); ++i) {
        old.since[i] = -3e9 + static_cast<double>(i) / 2;
        old.until[i] = old.since[i] + 0.5;
    }
    old.run();
    old.check_all(1);
    Case nothing({0, 0}, 1, 4, false, true);
    nothing.run();
    nothing.check_all(2);
}
