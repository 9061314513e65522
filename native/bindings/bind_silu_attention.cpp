#include <pybind11/stl.h>

#include <algorithm>
#include <array>
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

// What a score has added, each an array or None: positions, times, edges, until and since.
using Bias = std::array<py::object, 5>;

py::ssize_t length(std::size_t n) { return static_cast<py::ssize_t>(n); }

// The attention as the core sees it, in arrays that the caller holds.
SiluAttention attention_of(const py::object& given, const py::object& places, const Bias& bias, float scale,
                           float divisor) {
    const auto& [positions, times, edges, until, since] = bias;
    const py::array vqk = check_array(given, "vqk", {kFloat32}, {any('N'), 3, any('H'), any('D')});
    const py::array offsets = check_array(places, "offsets", {kInt64}, {any('B')});
    SiluAttention attention{};
    attention.num_heads = static_cast<std::size_t>(vqk.shape(2));
    attention.dim = static_cast<std::size_t>(vqk.shape(3));
    attention.scale = scale;
    attention.divisor = divisor;
    attention.vqk = span_of<const float>(vqk);
    attention.offsets = span_of<const std::int64_t>(offsets);
    const persia::Span<const std::int64_t> ends = attention.offsets;
    if (ends.empty() || ends[0] != 0 || ends[ends.size() - 1] != vqk.shape(0) ||
        !std::is_sorted(ends.begin(), ends.end()))
        throw py::value_error("offsets: expected them to rise from 0 to the number of events " +
                              std::to_string(vqk.shape(0)));
    if (!positions.is_none()) {
        attention.positions =
            span_of<const float>(check_array(positions, "positions", {kFloat32}, {any('P')}));
        for (std::size_t b = 0; b + 1 < ends.size(); ++b)
            if (ends[b + 1] - ends[b] > length(attention.positions.size()))
                throw py::value_error("positions: expected one for each distance in a sequence of " +
                                      std::to_string(ends[b + 1] - ends[b]) + " events, got " +
                                      std::to_string(attention.positions.size()));
    }
    if (!times.is_none()) {
        const py::array buckets = check_array(times, "times", {kFloat32}, {any('T')});
        if (buckets.shape(0) < 1) throw py::value_error("times: expected at least one bucket, got none");
        attention.times = span_of<const float>(buckets);
        attention.edges =
            span_of<const double>(check_array(edges, "edges", {kFloat64}, {buckets.shape(0) - 1}));
        attention.until = span_of<const double>(check_array(until, "until", {kFloat64}, {vqk.shape(0)}));
        attention.since = span_of<const double>(check_array(since, "since", {kFloat64}, {vqk.shape(0)}));
    }
    return attention;
}

py::array_t<float> forward(const py::object& vqk, const py::object& offsets, const Bias& bias, float scale,
                           float divisor, Team& team) {
    const SiluAttention attention = attention_of(vqk, offsets, bias, scale, divisor);
    AlignedArray<float> out(attention.vqk.size() / 3);
    team.run([&](persia::ThreadTeam& threads) { persia::silu_attention_forward(attention, out, threads); });
    return to_numpy(std::move(out),
                    {length(attention.num_events()), length(attention.num_heads), length(attention.dim)});
}

py::tuple backward(const py::object& vqk, const py::object& offsets, const Bias& bias,
                   const py::object& gradient, float scale, float divisor, Team& team) {
    const SiluAttention attention = attention_of(vqk, offsets, bias, scale, divisor);
    const auto heads = length(attention.num_heads), dim = length(attention.dim);
    const auto events = length(attention.num_events());
    const auto from =
        span_of<const float>(check_array(gradient, "gradient", {kFloat32}, {events, heads, dim}));
    AlignedArray<float> made(attention.vqk.size()), positions(attention.positions.size());
    AlignedArray<float> times(attention.times.size());
    const persia::SiluAttentionGradients to{made, positions, times};
    team.run(
        [&](persia::ThreadTeam& threads) { persia::silu_attention_backward(attention, from, to, threads); });
    const auto where_given = [](const py::object& object, AlignedArray<float>& array) -> py::object {
        if (object.is_none()) return py::none();
        return to_numpy(std::move(array));
    };
    return py::make_tuple(to_numpy(std::move(made), {events, 3, heads, dim}), where_given(bias[0], positions),
                          where_given(bias[1], times));
}

constexpr const char* kForward =
    R"(Returns HSTU's causal attention [N, H, D] within sequences that lie one after the other.

Each event sums the v of itself and those before it in its sequence, weighed by SiLU(scale q·k + bias) /
divisor. `bias` is (positions, times, edges, until, since): to each score those of `positions` by the events'
distance and of `times` by the bucket of |until - since|, of the event that looks and the other one, are
added; bucket t begins at edges[t - 1]. The first or the others may be None. Results don't depend on the
number of threads.

Shapes: vqk float32 [N, 3, H, D], offsets int64 [B+1]; float32 positions [P], for sequences of at most P
events, and times [T]; float64 edges [T-1], until and since [N].)";

constexpr const char* kBackward =
    R"(Returns the gradients of `vqk`, `positions` and `times`; None of the latter two where they are None.

Shapes: as in `silu_attention_forward`, whose result `gradient` [N, H, D] is of.)";

}  // namespace

void bind_silu_attention(py::module_& m) {
    m.def("silu_attention_forward", &forward, py::arg("vqk"), py::arg("offsets"), py::arg("bias"),
          py::kw_only(), py::arg("scale"), py::arg("divisor"), py::arg("team"), kForward);
    m.def("silu_attention_backward", &backward, py::arg("vqk"), py::arg("offsets"), py::arg("bias"),
          py::arg("gradient"), py::kw_only(), py::arg("scale"), py::arg("divisor"), py::arg("team"),
          kBackward);
}
