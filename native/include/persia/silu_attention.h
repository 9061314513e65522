// Causal attention of HSTU within sequences that lie one after the other: each event sums the values of
// itself and those before it, weighed by SiLU(scale q·k + bias) / divisor. Scores are made again in the
// backward, so that nothing of the size of a sequence's square is ever in memory.
//
// N events of B sequences, H heads of dim D.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/span.h"
#include "persia/thread_team.h"

namespace persia {

struct SiluAttention {
    std::size_t num_heads, dim;
    float scale, divisor;
    Span<const std::int64_t> offsets;  // [B + 1], rising from 0 to N
    Span<const float> vqk;             // [N, 3, H, D]
    // Added to a score where there are some: by the distance of the two events, which is below P, and by the
    // bucket of |until of the one that looks - since of the other|; bucket t begins at edge t - 1.
    // Times are double: float tells seconds apart only within 194 days.
    Span<const float> positions;      // [P]
    Span<const float> times;          // [T]
    Span<const double> edges;         // [T - 1] that rise
    Span<const double> until, since;  // [N]

    std::size_t num_events() const { return static_cast<std::size_t>(offsets[offsets.size() - 1]); }
};

struct SiluAttentionGradients {
    Span<float> vqk;               // [N, 3, H, D]
    Span<float> positions, times;  // as above; empty where there are none
};

// Results don't depend on the number of threads. out [N, H, D]
void silu_attention_forward(const SiluAttention& attention, Span<float> out, ThreadTeam& team);

// gradient: of out.
void silu_attention_backward(const SiluAttention& attention, Span<const float> gradient,
                             const SiluAttentionGradients& to, ThreadTeam& team);

}  // namespace persia
