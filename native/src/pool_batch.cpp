#include "persia/pool_batch.h"

#include <algorithm>
#include <vector>

namespace persia {
namespace {

// As a block of the GPU does it: slices side by side, then halves onto each other.
template <typename Sum>
Quad sum_slices(const BatchGroup& group, const Sum& sum) {
    const std::uint32_t slices = kBlockThreads / threads_of_row(group.dim, kBlockThreads);
    std::vector<Quad> parts(slices);
    for (std::uint32_t s = 0; s < slices; ++s) parts[s] = sum(s, slices);
    for (std::uint32_t half = slices / 2; half > 0; half /= 2)
        for (std::uint32_t s = 0; s < half; ++s) add_quad(parts[s + half], 1.0f, &parts[s]);
    return parts[0];
}

Quad sum_piece(const PoolBatch& batch, const BatchGroup& group, RowUses uses, std::uint32_t q) {
    return sum_slices(group, [&](std::uint32_t slice, std::uint32_t slices) {
        return sum_uses(batch, group, uses, q, slice, slices);
    });
}

Quad sum_row(const PoolBatch& batch, const BatchGroup& group, RowUses uses, std::uint32_t q) {
    const std::uint32_t pieces = num_pieces(group, uses);
    if (pieces == 0) return sum_uses(batch, group, uses, q, 0, 1);
    if (pieces == 1) return sum_piece(batch, group, uses, q);
    for (std::uint32_t piece = 0; piece < pieces; ++piece)
        *partial_of(batch, group, uses, piece, q) = sum_piece(batch, group, uses_of_piece(uses, piece), q);
    return sum_slices(group, [&](std::uint32_t slice, std::uint32_t slices) {
        return sum_partials(batch, group, uses, q, slice, slices);
    });
}

}  // namespace

void pool_batch_forward(const PoolBatch& batch) {
    for (std::uint32_t i = 0; i < batch.num_features; ++i) {
        const BatchFeature& f = batch.features[i];
        const std::uint64_t threads = forward_tasks(batch, f) / 2 + 1;  // with a task or two
        for (std::uint64_t t = 0; t < threads; ++t) forward_feature(batch, f, t, threads);
    }
}

void pool_batch_backward(const PoolBatch& batch) {
    for (std::uint32_t g = 0; g < batch.num_groups; ++g) {
        const BatchGroup& group = batch.groups[g];
        std::vector<Quad> row(quads_of(group.dim));
        for (std::uint32_t u = 0; u < group.num_rows; ++u) {
            const RowUses uses = uses_of(batch, group, u);
            std::uint32_t most = 0;
            for (std::uint32_t q = 0; q < row.size(); ++q) {
                row[q] = sum_row(batch, group, uses, q);
                finish_quad(batch, &row[q]);
                most = std::max(most, largest_bits(row[q]));
            }
            for (std::uint32_t q = 0; q < row.size(); ++q)
                encode_quad(group.wire, row[q], float_of(most), gradient_of(group, u), group.dim, q);
        }
    }
}

}  // namespace persia
