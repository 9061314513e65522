// gather_pool for a GPU: all features of a batch, whatever their dims, in one launch for each direction.
//
// A thread of the forward makes four elements of an output, a group of threads of the backward a row's
// gradient. What a thread computes is here, for both compilers: CUDA kernels (native/cuda/pool_batch.cu) say
// which thread computes what, and `pool_batch_*` below do the same one after the other on the CPU, which is
// how the tests reach this code without a GPU. The semantics are those of pool.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "persia/pool_batch_types.h"
#include "persia/quad.h"

namespace persia {

// A row that more ids use than this is summed by a whole block, in slices: else the few ids that
// are in a third of all samples would keep everybody waiting.
constexpr std::uint32_t kLongRow = 64;
constexpr std::uint32_t kBlockThreads = 256;

PERSIA_BOTH float size_scale(Pooling pooling, std::uint32_t size) {  // as bag_scale
    if (pooling == Pooling::kMean) return 1.0f / static_cast<float>(size);
#ifdef __CUDA_ARCH__
    if (pooling == Pooling::kSqrtn) return 1.0f / sqrtf(static_cast<float>(size));
#else
    if (pooling == Pooling::kSqrtn) return 1.0f / std::sqrt(static_cast<float>(size));
#endif
    return 1.0f;
}

PERSIA_BOTH void add_id(const PoolBatch& batch, const BatchFeature& f, std::uint32_t id, std::uint32_t q,
                        Quad* sum) {
    const std::uint32_t row = batch.narrow ? static_cast<const std::uint16_t*>(batch.indices)[id]
                                           : static_cast<const std::uint32_t*>(batch.indices)[id];
    if (row >= f.num_rows) {
        batch.flags->bad_index = 1;
        return;
    }
    const Quad quad = decode_quad(f.wire, f.rows + row * wire_row_bytes(f.wire, f.dim), f.dim, q);
    for (int i = 0; i < 4; ++i) sum->v[i] += quad.v[i];
}

PERSIA_BOTH std::uint64_t forward_threads(const PoolBatch& batch, const BatchFeature& f) {
    return static_cast<std::uint64_t>(batch.num_samples) * f.length * quads_of(f.dim);
}

// Thread t of a feature's `forward_threads`: neighbours write neighbours.
PERSIA_BOTH void forward_quad(const PoolBatch& batch, const BatchFeature& f, std::uint64_t t) {
    const std::uint32_t quads = quads_of(f.dim), q = static_cast<std::uint32_t>(t % quads);
    const auto place = static_cast<std::uint32_t>(t / quads);
    const std::uint32_t sample = f.length == 1 ? place : place / f.length;
    const std::uint32_t begin = f.first + (f.bags ? f.bags[sample] : sample);
    const std::uint32_t end = f.bags ? f.first + f.bags[sample + 1] : begin + 1;
    Quad sum{};
    float* to = f.values + static_cast<std::size_t>(sample) * f.stride + 4 * q;
    if (f.pooling == Pooling::kSequence) {
        const std::uint32_t l = place - sample * f.length;
        const bool here = begin + l < end;
        if (here) add_id(batch, f, begin + l, q, &sum);
        if (q == 0) {
            f.mask[place] = here;
            if (here && f.bags) batch.samples[begin + l] = sample;
        }
        to += static_cast<std::size_t>(l) * f.dim;
    } else {
        for (std::uint32_t id = begin; id < end; ++id) add_id(batch, f, id, q, &sum);
        if (f.bags && end > begin) {
            const float scale = size_scale(f.pooling, end - begin);
            for (int i = 0; i < 4; ++i) sum.v[i] *= scale;
            if (q == 0)
                for (std::uint32_t id = begin; id < end; ++id) batch.samples[id] = sample;
        }
    }
    store_words(sum.v, length_of_quad(f.dim, q), to);
}

// The feature that an id of the group belongs to: the last whose ids begin at or before it.
PERSIA_BOTH const BatchFeature& feature_of(const PoolBatch& batch, const BatchGroup& group,
                                           std::uint32_t id) {
    std::uint32_t low = group.first_feature, high = low + group.num_features;
    while (high - low > 1) {
        const std::uint32_t middle = (low + high) / 2;
        (batch.features[middle].first <= id ? low : high) = middle;
    }
    return batch.features[low];
}

struct RowUses {
    std::uint32_t begin, end;  // in positions
};

PERSIA_BOTH RowUses uses_of(const PoolBatch& batch, const BatchGroup& group, std::uint32_t u) {
    const std::uint32_t* const at = batch.row_offsets + group.first_row + u;
    return {at[0], at[1]};
}

PERSIA_BOTH bool is_long(const BatchGroup& group, RowUses uses) {
    return uses.end - uses.begin > kLongRow && quads_of(group.dim) <= kBlockThreads;
}

// The sum, over every num_slices-th use of a row from the slice-th, of four elements of the gradients from 4
// q on.
PERSIA_BOTH Quad sum_uses(const PoolBatch& batch, const BatchGroup& group, RowUses uses, std::uint32_t q,
                          std::uint32_t slice, std::uint32_t num_slices) {
    Quad sum{};
    const std::uint32_t n = length_of_quad(group.dim, q);
    for (std::uint32_t i = uses.begin + slice; i < uses.end; i += num_slices) {
        const std::uint32_t id = batch.positions[i];
        const BatchFeature& f = feature_of(batch, group, id);
        if (!f.values) continue;
        const std::uint32_t sample = f.bags ? batch.samples[id] : id - f.first;
        const float* from = f.values + static_cast<std::size_t>(sample) * f.stride + 4 * q;
        float scale = 1.0f;
        if (f.bags && f.pooling == Pooling::kSequence) {
            from += static_cast<std::size_t>(id - f.first - f.bags[sample]) * f.dim;
        } else if (f.bags) {
            scale = size_scale(f.pooling, f.bags[sample + 1] - f.bags[sample]);
        }
        float g[4] = {};
        load_words(from, n, g);
        for (int k = 0; k < 4; ++k) sum.v[k] += g[k] * scale;
    }
    return sum;
}

// Last step before a sum travels: the loss scale is undone, and what is not finite noted.
PERSIA_BOTH void finish_quad(const PoolBatch& batch, Quad* sum) {
    const float factor = batch.factor ? *batch.factor : 1.0f;
    for (int i = 0; i < 4; ++i) {
        sum->v[i] *= factor;
        if ((float_bits(sum->v[i]) & 0x7f800000u) == 0x7f800000u) batch.flags->nonfinite = 1;
    }
}

PERSIA_BOTH std::byte* gradient_of(const BatchGroup& group, std::uint32_t u) {
    return group.gradients + u * wire_row_bytes(group.wire, group.dim);
}

// Threads that share a row: a power of two, at most `most`.
PERSIA_BOTH std::uint32_t threads_of_row(std::uint32_t dim, std::uint32_t most) {
    std::uint32_t threads = 1;
    while (threads < quads_of(dim) && threads < most) threads *= 2;
    return threads;
}

// The kernels' work on the CPU, with the same sums in the same order.
void pool_batch_forward(const PoolBatch& batch);
void pool_batch_backward(const PoolBatch& batch);

}  // namespace persia
