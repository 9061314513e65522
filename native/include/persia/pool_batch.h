// gather_pool for a GPU: all features of a batch, whatever their dims, in one launch for each direction.
//
// A thread of the forward makes four elements of an output, a group of threads of the backward a row's
// gradient. What a thread computes is here, for both compilers: CUDA kernels (native/cuda/pool_batch.cu) say
// which thread computes what, and `pool_batch_*` below do the same one after the other on the CPU, which is
// how the tests reach this code without a GPU. The semantics are those of pool.h.
//
// B samples, N ids, U unique rows of a group, D dim, L longest sequence; a quad is four elements of a row.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "persia/codec.h"
#include "persia/pool.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define PERSIA_BOTH __host__ __device__ inline
#else
#define PERSIA_BOTH inline
#endif

namespace persia {

// Addresses are of the device (of the host for `pool_batch_*`). Mirrored by NumPy dtypes in
// trainer/pooling/cuda_kernel.py.
struct BatchFeature {
    const std::uint32_t* bags;  // [B+1] as in PoolFeature; null: one id per sample
    const std::byte* rows;      // [U] of its group, as they travel
    float* values;              // output or its gradient: [B, stride], or [B, L, D]; null: no gradient
    bool* mask;                 // [B, L] of a sequence
    std::uint32_t first;        // its first id in the batch
    std::uint32_t num_rows;     // U
    std::uint32_t dim;          // D
    std::uint32_t length;       // L; 1 where ids are pooled
    std::uint32_t stride;       // elements from one sample's values to the next
    Pooling pooling;
    Wire wire;
};
static_assert(sizeof(BatchFeature) == 56);

struct BatchGroup {
    std::byte* gradients;     // [U] as they travel
    std::uint32_t first_row;  // of all rows of the batch
    std::uint32_t num_rows;   // U
    std::uint32_t dim;
    std::uint32_t first_feature;  // features [first_feature, first_feature + num_features) have its rows
    std::uint32_t num_features;
    Wire wire;
};
static_assert(sizeof(BatchGroup) == 32);

// What went wrong in a batch: a kernel can't throw.
struct BatchFlags {
    std::uint32_t bad_index;  // an index was no row of its group; zeros were taken
    std::uint32_t nonfinite;  // some row's gradient is not finite
    std::uint32_t num_long;   // rows in `long_rows`
};

struct PoolBatch {
    const BatchFeature* features;  // by group, within it by their ids
    std::uint32_t num_features;
    const BatchGroup* groups;  // null in the forward
    std::uint32_t num_groups;
    std::uint32_t num_samples;
    const void* indices;               // [N]
    bool narrow;                       // std::uint16_t, else std::uint32_t
    std::uint32_t* samples;            // [N] the sample of each id of a bag; the forward writes it
    const std::uint32_t* row_offsets;  // [all rows + 1]
    const std::uint32_t* positions;    // [N] the ids that use each row, ascending
    const float* factor;               // gradients are multiplied by it; null: by 1
    std::uint64_t* long_rows;          // room for N / kLongRow, group << 32 | row
    BatchFlags* flags;
};

// A row that more ids use than this is summed by a whole block, in slices: else the few ids that
// are in a third of all samples would keep everybody waiting.
constexpr std::uint32_t kLongRow = 64;
constexpr std::uint32_t kBlockThreads = 256;

struct Quad {
    float v[4];
};

PERSIA_BOTH std::uint32_t quads_of(std::uint32_t dim) { return (dim + 3) / 4; }

PERSIA_BOTH std::uint32_t float_bits(float x) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    return bits_of(x);
#endif
}

PERSIA_BOTH float bits_float(std::uint32_t x) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(x);
#else
    return float_of(x);
#endif
}

PERSIA_BOTH float from_half(std::uint16_t x) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(x));
#else
    const Half half{x};
    float y;
    decode_half(&half, &y, 1);
    return y;
#endif
}

PERSIA_BOTH std::uint16_t to_half(float x) {
#ifdef __CUDA_ARCH__
    return __half_as_ushort(__float2half_rn(x));
#else
    Half y;
    encode_half(&x, &y, 1);
    return y.bits;
#endif
}

PERSIA_BOTH std::uint16_t to_bf16(float x) {  // as WireBf16
    const std::uint32_t bits = float_bits(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<std::uint16_t>((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

PERSIA_BOTH std::size_t wire_row_bytes(Wire wire, std::uint32_t dim) {
    return wire == Wire::kFp32 ? 4ull * dim : 2ull * dim + (wire == Wire::kScaledFp16 ? 4 : 0);
}

// Four neighbours at once where they lie well: that is what memory bandwidth depends on.
template <typename Word>
struct alignas(4 * sizeof(Word)) Four {
    Word x[4];
};

template <typename Word>
PERSIA_BOTH void load_words(const Word* from, std::uint32_t n, Word* to) {
    if (n == 4 && reinterpret_cast<std::uintptr_t>(from) % sizeof(Four<Word>) == 0) {
        const Four<Word> four = *reinterpret_cast<const Four<Word>*>(from);
        for (int i = 0; i < 4; ++i) to[i] = four.x[i];
    } else {
        for (std::uint32_t i = 0; i < 4; ++i)
            if (i < n) to[i] = from[i];  // of a known length: stays in registers
    }
}

template <typename Word>
PERSIA_BOTH void store_words(const Word* from, std::uint32_t n, Word* to) {
    if (n == 4 && reinterpret_cast<std::uintptr_t>(to) % sizeof(Four<Word>) == 0) {
        Four<Word> four;
        for (int i = 0; i < 4; ++i) four.x[i] = from[i];
        *reinterpret_cast<Four<Word>*>(to) = four;
    } else {
        for (std::uint32_t i = 0; i < 4; ++i)
            if (i < n) to[i] = from[i];  // of a known length: stays in registers
    }
}

PERSIA_BOTH std::uint32_t length_of_quad(std::uint32_t dim, std::uint32_t q) {
    return dim - 4 * q < 4 ? dim - 4 * q : 4;
}

// A row's scale lies behind its words, on any even address.
PERSIA_BOTH float load_scale(const std::uint16_t* words) {
    return bits_float(words[0] | static_cast<std::uint32_t>(words[1]) << 16);
}

// Elements [4 q, 4 q + n) of a row as fp32.
PERSIA_BOTH Quad decode_quad(Wire wire, const std::byte* row, std::uint32_t dim, std::uint32_t q) {
    Quad quad{};
    const std::uint32_t n = length_of_quad(dim, q);
    if (wire == Wire::kFp32) {
        load_words(reinterpret_cast<const float*>(row) + 4 * q, n, quad.v);
        return quad;
    }
    const auto* const words = reinterpret_cast<const std::uint16_t*>(row);
    std::uint16_t w[4] = {};
    load_words(words + 4 * q, n, w);
    const float norm = wire == Wire::kScaledFp16 ? load_scale(words + dim) : 0.0f;
    for (std::uint32_t i = 0; i < 4; ++i) {  // beyond n they are zeros
        if (wire == Wire::kBf16) {
            quad.v[i] = bits_float(static_cast<std::uint32_t>(w[i]) << 16);
        } else {
            quad.v[i] = from_half(w[i]);
            if (wire == Wire::kScaledFp16) quad.v[i] = quad.v[i] * (1 / WireScaledFp16::kKappa) * norm;
        }
    }
    return quad;
}

// The inverse; norm: the row's largest magnitude, of scaled_fp16 only.
PERSIA_BOTH void encode_quad(Wire wire, const Quad& quad, float norm, std::byte* row, std::uint32_t dim,
                             std::uint32_t q) {
    const std::uint32_t n = length_of_quad(dim, q);
    if (wire == Wire::kFp32) {
        store_words(quad.v, n, reinterpret_cast<float*>(row) + 4 * q);
        return;
    }
    auto* const words = reinterpret_cast<std::uint16_t*>(row);
    const float up = norm < 5.421010862427522e-20f ? 18446744073709551616.0f : 1.0f;  // 2^-64, 2^64
    const float factor = norm > 0 ? WireScaledFp16::kKappa / (norm * up) : 0.0f;
    std::uint16_t w[4] = {};
    for (std::uint32_t i = 0; i < 4; ++i) {
        if (wire == Wire::kBf16) {
            w[i] = to_bf16(quad.v[i]);
        } else {
            w[i] = to_half(wire == Wire::kScaledFp16 ? quad.v[i] * up * factor : quad.v[i]);
        }
    }
    store_words(w, n, words + 4 * q);
    if (wire == Wire::kScaledFp16 && q == 0) {
        const std::uint32_t bits = float_bits(norm);
        words[dim] = static_cast<std::uint16_t>(bits);
        words[dim + 1] = static_cast<std::uint16_t>(bits >> 16);
    }
}

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

// Of the bits without their sign, where NaN > infinity > the finite.
PERSIA_BOTH std::uint32_t largest_bits(const Quad& quad) {
    std::uint32_t most = 0;
    for (int i = 0; i < 4; ++i) {
        const std::uint32_t bits = float_bits(quad.v[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
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
