#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "arrays.h"
#include "bindings.h"
#include "persia/silu_attention.h"
#include "team.h"

namespace {

using namespace persia_bindings;
using persia::AlignedArray;
using persia::SiluAttention;

// A bias as Python gives it: None, or what it has for scores.
struct Arguments {
    py::object vqk, offsets;
    float scale, divisor;
    py::object positions, times, edges, until, since;
};

py::ssize_t length(std::size_t n) { return static_cast<py::ssize_t>(n); }

// The attention as the core sees it, in arrays that the caller holds.
SiluAttention attention_of(const Arguments& given) {
    const py::array vqk = check_array(given.vqk, "vqk", {kFloat32}, {any('N'), 3, any('H'), any('D')});
    const py::array offsets = check_array(given.offsets, "offsets", {kInt64}, {any('B')});
    SiluAttention attention{};
    attention.num_heads = static_cast<std::size_t>(vqk.shape(2));
    attention.dim = static_cast<std::size_t>(vqk.shape(3));
    attention.scale = given.scale;
    attention.divisor = given.divisor;
    attention.vqk = span_of<const float>(vqk);
    attention.offsets = span_of<const std::int64_t>(offsets);
    const persia::Span<const std::int64_t> ends = attention.offsets;
    if (ends.empty() || ends[0] != 0 || ends[ends.size() - 1] != vqk.shape(0) ||
        !std::is_sorted(ends.begin(), ends.end()))
        throw py::value_error("offsets: expected them to rise from 0 to the number of events " +
                              std::to_string(vqk.shape(0)));
    if (!given.positions.is_none()) {
        attention.positions =
            span_of<const float>(check_array(given.positions, "positions", {kFloat32}, {any('P')}));
        for (std::size_t b = 0; b + 1 < ends.size(); ++b)
            if (ends[b + 1] - ends[b] > length(attention.positions.size()))
                throw py::value_error("positions: expected one for each distance in a sequence of " +
                                      std::to_string(ends[b + 1] - ends[b]) + " events, got " +
                                      std::to_string(attention.positions.size()));
    }
    if (!given.times.is_none()) {
        const py::array times = check_array(given.times, "times", {kFloat32}, {any('T')});
        if (times.shape(0) < 1) throw py::value_error("times: expected at least one bucket, got none");
        attention.times = span_of<const float>(times);
        attention.edges =
            span_of<const float>(check_array(given.edges, "edges", {kFloat32}, {times.shape(0) - 1}));
        attention.until = span_of<const float>(check_array(given.until, "until", {kFloat32}, {vqk.shape(0)}));
        attention.since = span_of<const float>(check_array(given.since, "since", {kFloat32}, {vqk.shape(0)}));
    }
    return attention;
}

py::array_t<float> forward(const Arguments& given, Team& team) {
    const SiluAttention attention = attention_of(given);
    AlignedArray<float> out(attention.vqk.size() / 3);
    team.run([&](persia::ThreadTeam& threads) { persia::silu_attention_forward(attention, out, threads); });
    return to_numpy(std::move(out),
                    {length(attention.num_events()), length(attention.num_heads), length(attention.dim)});
}

py::tuple backward(const Arguments& given, const py::object& gradient, Team& team) {
    const SiluAttention attention = attention_of(given);
    const auto heads = length(attention.num_heads), dim = length(attention.dim);
    const auto events = length(attention.num_events());
    const auto from =
        span_of<const float>(check_array(gradient, "gradient", {kFloat32}, {events, heads, dim}));
    AlignedArray<float> vqk(attention.vqk.size()), positions(attention.positions.size());
    AlignedArray<float> times(attention.times.size());
    const persia::SiluAttentionGradients to{vqk, positions, times};
    team.run(
        [&](persia::ThreadTeam& threads) { persia::silu_attention_backward(attention, from, to, threads); });
    const auto given_or_none = [](const py::object& object, AlignedArray<float>& array) -> py::object {
        if (object.is_none()) return py::none();
        return to_numpy(std::move(array));
    };
    return py::make_tuple(to_numpy(std::move(vqk), {events, 3, heads, dim}),
                          given_or_none(given.positions, positions), given_or_none(given.times, times));
}

constexpr const char* kForward =
    R"(Returns HSTU's causal attention [N, H, D] within sequences that lie one after the other.

Each event sums the v of itself and those before it in its sequence, weighed by SiLU(scale q·k + bias) /
divisor. The bias is the sum of one by the events' distance and one by the bucket of |until - since|, of the
event that looks and the other one; bucket t begins at edges[t - 1]. Either may be None. Results don't depend
on the number of threads.

Shapes: vqk float32 [N, 3, H, D], offsets int64 [B+1]; float32 positions [P], for sequences of at most P
events, times [T], edges [T-1], until and since [N].)";

constexpr const char* kBackward =
    R"(Returns the gradients of `vqk`, `positions` and `times`; of the latter None where they are None.

Shapes: as in `silu_attention_forward`, whose result `gradient` [N, H, D] is of.)";

}  // namespace

void bind_silu_attention(py::module_& m) {
    m.def(
        "silu_attention_forward",
        [](py::object vqk, py::object offsets, float scale, float divisor, py::object positions,
           py::object times, py::object edges, py::object until, py::object since, Team& team) {
            return forward({vqk, offsets, scale, divisor, positions, times, edges, until, since}, team);
        },
        py::arg("vqk"), py::arg("offsets"), py::kw_only(), py::arg("scale"), py::arg("divisor"),
        py::arg("positions"), py::arg("times"), py::arg("edges"), py::arg("until"), py::arg("since"),
        py::arg("team"), kForward);
    m.def(
        "silu_attention_backward",
        [](py::object vqk, py::object offsets, py::object gradient, float scale, float divisor,
           py::object positions, py::object times, py::object edges, py::object until, py::object since,
           Team& team) {
            return backward({vqk, offsets, scale, divisor, positions, times, edges, until, since}, gradient,
                            team);
        },
        py::arg("vqk"), py::arg("offsets"), py::arg("gradient"), py::kw_only(), py::arg("scale"),
        py::arg("divisor"), py::arg("positions"), py::arg("times"), py::arg("edges"), py::arg("until"),
        py::arg("since"), py::arg("team"), kBackward);
}
