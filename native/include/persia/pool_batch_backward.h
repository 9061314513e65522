// What a thread of a GPU's backward computes: see pool_batch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/pool_batch_forward.h"

namespace persia {

// A row that more ids use than kLongRow is summed by whole blocks, in slices: else the few ids that are in a
// third of all samples would keep everybody waiting. A block takes kPiece uses; what several blocks have
// summed of a row is added up by another one.
constexpr std::uint32_t kLongRow = 64;
constexpr std::uint32_t kPiece = 512;
constexpr std::uint32_t kBlockThreads = 256;

struct RowUses {
    std::uint32_t begin, end;  // in positions
};

PERSIA_BOTH RowUses uses_of(const PoolBatch& batch, const BatchGroup& group, std::uint32_t u) {
    const std::uint32_t* const at = batch.row_offsets + group.first_row + u;
    return {read<std::uint32_t>(at), read<std::uint32_t>(at + 1)};
}

// Blocks that sum a row; 0 if it isn't long.
PERSIA_BOTH std::uint32_t num_pieces(const BatchGroup& group, RowUses uses) {
    const std::uint32_t count = uses.end - uses.begin;
    if (count <= kLongRow || quads_of(group.dim) > kBlockThreads) return 0;
    return count / kPiece + (count % kPiece != 0);
}

PERSIA_BOTH RowUses uses_of_piece(RowUses uses, std::uint32_t piece) {
    const std::uint32_t begin = uses.begin + piece * kPiece;
    return {begin, uses.end - begin < kPiece ? uses.end : begin + kPiece};
}

// Sums of pieces that there is room for in a group of so many ids.
PERSIA_BOTH std::uint64_t num_partials(std::uint64_t num_ids) {
    return (num_ids + kPiece / 2 - 1) / (kPiece / 2);
}

// Where a row's partial sums begin: at its first use that is a multiple of half a piece. More than a piece of
// uses holds at least as many such multiples as it has pieces, so rows don't meet.
PERSIA_BOTH std::uint64_t first_partial(const PoolBatch& batch, const BatchGroup& group, RowUses uses) {
    return num_partials(uses.begin - read<std::uint32_t>(batch.row_offsets + group.first_row));
}

PERSIA_BOTH Quad* partial_of(const PoolBatch& batch, const BatchGroup& group, RowUses uses,
                             std::uint32_t piece, std::uint32_t q) {
    return group.partials + (first_partial(batch, group, uses) + piece) * quads_of(group.dim) + q;
}

// The feature of an id, and the ids [first, end) that it has.
struct FeatureOfIds {
    BatchFeature f;
    std::uint32_t end;

    PERSIA_BOTH bool has(std::uint32_t id) const { return f.first <= id && id < end; }
};

// The last feature of the group whose ids begin at or before this one.
PERSIA_BOTH FeatureOfIds feature_of(const PoolBatch& batch, const BatchGroup& group, std::uint32_t id) {
    std::uint32_t low = group.first_feature;
    const std::uint32_t end = low + group.num_features;
    std::uint32_t high = end;
    while (high - low > 1) {
        const std::uint32_t middle = (low + high) / 2;
        (batch.features[middle].first <= id ? low : high) = middle;
    }
    return {batch.features[low], low + 1 < end ? batch.features[low + 1].first : 0xffffffffu};
}

// Four elements from 4 q on of the gradients of kCount ids of a feature, added to the sum in the ids' order.
template <Access kAccess, std::uint32_t kCount>
PERSIA_BOTH void add_gradients_as(const PoolBatch& batch, const BatchFeature& f, const std::uint32_t* ids,
                                  std::uint32_t count, std::uint32_t q, Quad* sum) {
    if (!f.values) return;
    const std::uint32_t n = length_of_quad(f.dim, q);
    std::uint32_t samples[kCount];
    std::size_t elements[kCount];
    float scales[kCount];
    Raw raw[kCount]{};
    for (std::uint32_t k = 0; k < kCount; ++k) {
        samples[k] = ids[k] - f.first;
        if (f.bags && k < count) samples[k] = read<std::uint32_t>(batch.samples + ids[k]);
    }
    for (std::uint32_t k = 0; k < kCount; ++k) {
        elements[k] = static_cast<std::size_t>(samples[k]) * f.stride + 4 * q;
        scales[k] = 1.0f;
        if (!f.bags || k >= count) continue;
        if (f.weights) {  // only of sums
            scales[k] = weight_of(f, ids[k]);
            continue;
        }
        const auto bag = read<std::uint32_t>(f.bags + samples[k]);
        if (f.pooling == Pooling::kSequence) {
            elements[k] += static_cast<std::size_t>(ids[k] - f.first - bag) * f.dim;
        } else {
            scales[k] = size_scale(f.pooling, read<std::uint32_t>(f.bags + samples[k] + 1) - bag);
        }
    }
    const auto* const values = static_cast<const std::byte*>(f.values);
    for (std::uint32_t k = 0; k < kCount; ++k)
        if (k < count) raw[k] = load_raw<kAccess>(values + elements[k] * (f.bf16 ? 2 : 4), f.bf16, n);
    for (std::uint32_t k = 0; k < kCount; ++k)
        if (k < count) add_quad(f.bf16 ? decode_bf16(raw[k]) : decode_fp32(raw[k]), scales[k], sum);
}

PERSIA_BOTH void add_gradients(const PoolBatch& batch, const BatchFeature& f, const std::uint32_t* ids,
                               std::uint32_t count, std::uint32_t q, Quad* sum) {
    const bool four = f.dim % 4 == 0 && f.stride % 4 == 0 && on_multiple(f.values, f.bf16 ? 8 : 16);
    if (four && f.bf16) {
        add_gradients_as<Access::kFour16, kAhead>(batch, f, ids, count, q, sum);
    } else if (four) {
        add_gradients_as<Access::kFour32, kAhead>(batch, f, ids, count, q, sum);
    } else {
        for (std::uint32_t k = 0; k < kAhead; ++k)
            if (k < count) add_gradients_as<Access::kAny, 1>(batch, f, ids + k, 1, q, sum);
    }
}

// The sum, over every num_slices-th use of a row from the slice-th, of four elements of the gradients from 4
// q on.
PERSIA_BOTH Quad sum_uses(const PoolBatch& batch, const BatchGroup& group, RowUses uses, std::uint32_t q,
                          std::uint32_t slice, std::uint32_t num_slices) {
    Quad sum{};
    const std::uint32_t count = uses.end - uses.begin;
    FeatureOfIds at{};
    for (std::uint32_t i = slice; i < count; i += kAhead * num_slices) {
        std::uint32_t ids[kAhead];
        std::uint32_t here = 0;
        for (std::uint32_t k = 0; k < kAhead; ++k) {
            const std::uint32_t use = i + k * num_slices;
            ids[k] = use < count ? read<std::uint32_t>(batch.positions + uses.begin + use) : 0;
            here += use < count;
        }
        if (!at.has(ids[0])) at = feature_of(batch, group, ids[0]);
        bool one = true;  // nearly always: features rarely share a table
        for (std::uint32_t k = 1; k < kAhead; ++k) one = one && (k >= here || at.has(ids[k]));
        if (one) {
            add_gradients(batch, at.f, ids, here, q, &sum);
            continue;
        }
        for (std::uint32_t k = 0; k < here; ++k) {
            const auto id = read<std::uint32_t>(batch.positions + uses.begin + i + k * num_slices);
            if (!at.has(id)) at = feature_of(batch, group, id);
            add_gradients_as<Access::kAny, 1>(batch, at.f, &id, 1, q, &sum);
        }
    }
    return sum;
}

// The same of the sums of a row's pieces.
PERSIA_BOTH Quad sum_partials(const PoolBatch& batch, const BatchGroup& group, RowUses uses, std::uint32_t q,
                              std::uint32_t slice, std::uint32_t num_slices) {
    Quad sum{};
    for (std::uint32_t piece = slice; piece < num_pieces(group, uses); piece += num_slices)
        add_quad(*partial_of(batch, group, uses, piece, q), 1.0f, &sum);
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

}  // namespace persia
