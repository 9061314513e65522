// What a thread of a GPU's forward computes: see pool_batch.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "persia/pool_batch_types.h"
#include "persia/quad.h"
#include "persia/quad_row.h"

namespace persia {

// Loads of a thread that are on their way at once, so that it waits for them once.
constexpr std::uint32_t kAhead = 4;
template <Access kAccess>
constexpr std::uint32_t kAheadOf = kAccess == Access::kAny ? 1 : kAhead;

PERSIA_BOTH float size_scale(Pooling pooling, std::uint32_t size) {  // as bag_scale
    if (pooling == Pooling::kMean) return 1.0f / static_cast<float>(size);
#ifdef __CUDA_ARCH__
    if (pooling == Pooling::kSqrtn) return 1.0f / sqrtf(static_cast<float>(size));
#else
    if (pooling == Pooling::kSqrtn) return 1.0f / std::sqrt(static_cast<float>(size));
#endif
    return 1.0f;
}

PERSIA_BOTH void add_quad(const Quad& quad, float scale, Quad* sum) {
    for (int i = 0; i < 4; ++i) sum->v[i] += quad.v[i] * scale;
}

constexpr std::uint32_t kNoRow = 0xffffffffu;  // no batch has so many

// The rows of ids first, first + 1, ... of `count` at most; kNoRow for the others, and in a damaged batch.
template <std::uint32_t kCount>
PERSIA_BOTH void rows_of_ids(const PoolBatch& batch, const BatchFeature& f, std::uint32_t first,
                             std::uint32_t count, std::uint32_t* rows) {
    for (std::uint32_t k = 0; k < kCount; ++k) {
        rows[k] = kNoRow;
        if (k >= count) continue;
        rows[k] = batch.narrow
                      ? read<std::uint16_t>(static_cast<const std::uint16_t*>(batch.indices) + first + k)
                      : read<std::uint32_t>(static_cast<const std::uint32_t*>(batch.indices) + first + k);
    }
    bool bad = false;
    for (std::uint32_t k = 0; k < kCount; ++k) {
        if (rows[k] < f.num_rows) continue;
        bad = bad || k < count;
        rows[k] = kNoRow;
    }
    if (bad) batch.flags->bad_index = 1;
}

template <Access kAccess>
PERSIA_BOTH Raw load_row_of(const BatchFeature& f, std::uint32_t row, std::uint32_t q) {
    return load_row<kAccess>(f.wire, f.rows + row * wire_row_bytes(f.wire, f.dim), f.dim, q);
}

// What an id's row is multiplied by, in both directions.
PERSIA_BOTH float weight_of(const BatchFeature& f, std::uint32_t id) {
    return f.weights ? read<float>(f.weights + (id - f.first)) : 1.0f;
}

// Sum of four elements of the rows of ids [begin, end), in their order.
template <Access kAccess>
PERSIA_BOTH Quad sum_ids(const PoolBatch& batch, const BatchFeature& f, std::uint32_t begin,
                         std::uint32_t end, std::uint32_t q) {
    constexpr std::uint32_t ahead = kAheadOf<kAccess>;
    Quad sum{};
    for (std::uint32_t at = 0, count = end - begin; at < count; at += ahead) {
        std::uint32_t rows[ahead];
        Raw raw[ahead]{};
        rows_of_ids<ahead>(batch, f, begin + at, count - at, rows);
        for (std::uint32_t k = 0; k < ahead; ++k)
            if (rows[k] != kNoRow) raw[k] = load_row_of<kAccess>(f, rows[k], q);
        for (std::uint32_t k = 0; k < ahead; ++k)
            if (rows[k] != kNoRow)
                add_quad(decode_row<kAccess>(f.wire, raw[k]), weight_of(f, begin + at + k), &sum);
    }
    return sum;
}

PERSIA_BOTH void store_value(const BatchFeature& f, const Quad& quad, std::size_t element, std::uint32_t n) {
    if (f.bf16) {
        store_bf16(quad, n, static_cast<std::uint16_t*>(f.values) + element);
    } else {
        store_floats(quad, n, static_cast<float*>(f.values) + element);
    }
}

// Four elements of a bag's output or of a place of a sequence: t counts quads, then places.
template <Access kAccess>
PERSIA_BOTH void forward_bag(const PoolBatch& batch, const BatchFeature& f, std::uint64_t t) {
    const std::uint32_t quads = quads_of(f.dim), q = static_cast<std::uint32_t>(t % quads);
    const auto place = static_cast<std::uint32_t>(t / quads);
    const std::uint32_t sample = f.length == 1 ? place : place / f.length;
    const std::uint32_t begin = f.first + (f.bags ? read<std::uint32_t>(f.bags + sample) : sample);
    const std::uint32_t end = f.bags ? f.first + read<std::uint32_t>(f.bags + sample + 1) : begin + 1;
    std::size_t element = static_cast<std::size_t>(sample) * f.stride + 4 * q;
    Quad sum{};
    if (f.pooling == Pooling::kSequence) {
        const std::uint32_t l = place - sample * f.length;
        const bool here = begin + l < end;
        if (here) sum = sum_ids<kAccess>(batch, f, begin + l, begin + l + 1, q);
        if (q == 0) {
            f.mask[place] = here;
            if (here && f.bags) batch.samples[begin + l] = sample;
        }
        element += static_cast<std::size_t>(l) * f.dim;
    } else {
        sum = sum_ids<kAccess>(batch, f, begin, end, q);
        if (end > begin) {
            const float scale = size_scale(f.pooling, end - begin);
            for (int i = 0; i < 4; ++i) sum.v[i] *= scale;
            if (q == 0)
                for (std::uint32_t id = begin; id < end; ++id) batch.samples[id] = sample;
        }
    }
    store_value(f, sum, element, length_of_quad(f.dim, q));
}

// One id an output, which is a sample's or a jagged id's.
PERSIA_BOTH bool is_single(const BatchFeature& f) { return !f.bags && f.pooling != Pooling::kSequence; }
PERSIA_BOTH std::uint32_t num_single(const PoolBatch& batch, const BatchFeature& f) {
    return f.pooling == Pooling::kJagged ? f.length : batch.num_samples;
}

// Four elements of such outputs from `first` on, at most as many as are loaded ahead.
template <Access kAccess>
PERSIA_BOTH void forward_samples(const PoolBatch& batch, const BatchFeature& f, std::uint32_t first,
                                 std::uint32_t q) {
    constexpr std::uint32_t ahead = kAheadOf<kAccess>;
    const std::uint32_t all = num_single(batch, f), count = first < all ? all - first : 0;
    std::uint32_t rows[ahead];
    Raw raw[ahead]{};
    rows_of_ids<ahead>(batch, f, f.first + first, count, rows);
    for (std::uint32_t k = 0; k < ahead; ++k)
        if (rows[k] != kNoRow) raw[k] = load_row_of<kAccess>(f, rows[k], q);
    for (std::uint32_t k = 0; k < ahead; ++k) {
        if (k >= count) continue;
        Quad sum{};
        if (rows[k] != kNoRow) add_quad(decode_row<kAccess>(f.wire, raw[k]), 1.0f, &sum);
        store_value(f, sum, static_cast<std::size_t>(first + k) * f.stride + 4 * q, length_of_quad(f.dim, q));
    }
}

template <Access kAccess>
PERSIA_BOTH void forward_single(const PoolBatch& batch, const BatchFeature& f, std::uint64_t t) {
    const std::uint32_t quads = quads_of(f.dim), q = static_cast<std::uint32_t>(t % quads);
    const auto first = static_cast<std::uint32_t>(t / quads) * kAhead;
    for (std::uint32_t k = 0; k < kAhead; k += kAheadOf<kAccess>)
        forward_samples<kAccess>(batch, f, first + k, q);
}

// What threads of a feature do: neighbours write neighbours.
PERSIA_BOTH std::uint64_t forward_tasks(const PoolBatch& batch, const BatchFeature& f) {
    const std::uint64_t samples = batch.num_samples, single = num_single(batch, f);
    return (is_single(f) ? (single + kAhead - 1) / kAhead : samples * f.length) * quads_of(f.dim);
}

// Tasks t, t + step, ... of a feature.
template <Access kAccess>
PERSIA_BOTH void forward_as(const PoolBatch& batch, const BatchFeature& f, std::uint64_t t,
                            std::uint64_t step) {
    const std::uint64_t all = forward_tasks(batch, f);
    for (; t < all; t += step)
        is_single(f) ? forward_single<kAccess>(batch, f, t) : forward_bag<kAccess>(batch, f, t);
}

PERSIA_BOTH void forward_feature(const PoolBatch& batch, const BatchFeature& f, std::uint64_t t,
                                 std::uint64_t step) {
    switch (row_access(f.wire, f.rows, f.dim)) {
        case Access::kFour32:
            return forward_as<Access::kFour32>(batch, f, t, step);
        case Access::kFour16:
            return forward_as<Access::kFour16>(batch, f, t, step);
        case Access::kTwo16:
            return forward_as<Access::kTwo16>(batch, f, t, step);
        case Access::kAny:
            return forward_as<Access::kAny>(batch, f, t, step);
    }
}

}  // namespace persia
