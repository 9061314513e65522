#include "persia/pool_batch.h"

#include <algorithm>
#include <vector>

namespace persia {
namespace {

// As a block of the GPU sums a long row: slices side by side, then halves onto each other.
Quad sum_long(const PoolBatch& batch, const BatchGroup& group, RowUses uses, std::uint32_t q) {
    const std::uint32_t slices = kBlockThreads / threads_of_row(group.dim, kBlockThreads);
    std::vector<Quad> parts(slices);
    for (std::uint32_t s = 0; s < slices; ++s) parts[s] = sum_uses(batch, group, uses, q, s, slices);
    for (std::uint32_t half = slices / 2; half > 0; half /= 2)
        for (std::uint32_t s = 0; s < half; ++s)
            for (int i = 0; i < 4; ++i) parts[s].v[i] += parts[s + half].v[i];
    return parts[0];
}

}  // namespace

void pool_batch_forward(const PoolBatch& batch) {
    for (std::uint32_t f = 0; f < batch.num_features; ++f) {
        const BatchFeature& feature = batch.features[f];
        for (std::uint64_t t = 0; t < forward_threads(batch, feature); ++t) forward_quad(batch, feature, t);
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
                row[q] = is_long(group, uses) ? sum_long(batch, group, uses, q)
                                              : sum_uses(batch, group, uses, q, 0, 1);
                finish_quad(batch, &row[q]);
                most = std::max(most, largest_bits(row[q]));
            }
            for (std::uint32_t q = 0; q < row.size(); ++q)
                encode_quad(group.wire, row[q], float_of(most), gradient_of(group, u), group.dim, q);
        }
    }
}

}  // namespace persia
