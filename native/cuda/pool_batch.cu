// Which thread of the GPU computes what of a batch: see persia/pool_batch.h.
#include "persia/cuda_pool_batch.h"

namespace persia {
namespace {

constexpr std::uint32_t kWarp = 32;
constexpr std::uint32_t kLongBlocks = 1024;  // some for each multiprocessor
constexpr std::uint32_t kMostBlocks = 4096;  // of a grid's row: those that find nothing to do cost time too
constexpr std::uint32_t kMostRows = 65535;   // of a grid

__global__ void __launch_bounds__(kBlockThreads, 4) forward_kernel(PoolBatch batch) {
    const std::uint64_t step = static_cast<std::uint64_t>(gridDim.x) * blockDim.x;
    const std::uint64_t first = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (std::uint32_t i = blockIdx.y; i < batch.num_features; i += gridDim.y) {
        const BatchFeature f = batch.features[i];
        forward_feature(batch, f, first, step);
    }
}

// In any order: each piece is summed by one block, whichever it is.
__device__ void list_pieces(const PoolBatch& batch, std::uint32_t group, std::uint32_t u,
                            std::uint32_t pieces) {
    LongPiece* const to = batch.long_pieces + atomicAdd(&batch.flags->num_long, pieces);
    for (std::uint32_t piece = 0; piece < pieces; ++piece) to[piece] = {group, u, piece};
}

// A row is shared by as many threads of a warp as it has quads; long ones are listed for `long_kernel`.
__device__ void backward_group(const PoolBatch& batch, std::uint32_t number) {
    const BatchGroup group = batch.groups[number];
    const std::uint32_t quads = quads_of(group.dim), threads = threads_of_row(group.dim, kWarp);
    const std::uint32_t lane = threadIdx.x % threads, rows = blockDim.x / threads;
    const bool scaled = group.wire == Wire::kScaledFp16;
    for (std::uint64_t first = static_cast<std::uint64_t>(blockIdx.x) * rows; first < group.num_rows;
         first += static_cast<std::uint64_t>(gridDim.x) * rows) {
        const std::uint64_t u = first + threadIdx.x / threads;
        bool here = u < group.num_rows;
        RowUses uses{};
        if (here) uses = uses_of(batch, group, static_cast<std::uint32_t>(u));
        if (const std::uint32_t pieces = num_pieces(group, uses); pieces > 0) {
            if (lane == 0) list_pieces(batch, number, static_cast<std::uint32_t>(u), pieces);
            here = false;
        }
        std::byte* const out = here ? gradient_of(group, static_cast<std::uint32_t>(u)) : nullptr;
        Quad sum{};
        std::uint32_t most = 0;
        for (bool last = !scaled;; last = true) {  // twice for scaled_fp16: its scale comes first
            for (std::uint32_t q = lane; here && q < quads; q += threads) {
                if (last != scaled || quads > threads) {  // more than a register's worth is summed twice
                    sum = sum_uses(batch, group, uses, q, 0, 1);
                    finish_quad(batch, &sum);
                }
                if (last) {
                    encode_quad(group.wire, sum, __uint_as_float(most), out, group.dim, q);
                } else {
                    const std::uint32_t largest = largest_bits(sum);
                    most = largest > most ? largest : most;
                }
            }
            if (last) break;
            // All threads of the warp come here: the loop has as many turns for each of the block.
            for (std::uint32_t other = threads / 2; other > 0; other /= 2) {
                const std::uint32_t theirs = __shfl_xor_sync(0xffffffffu, most, other);
                most = theirs > most ? theirs : most;
            }
        }
    }
}

__global__ void __launch_bounds__(kBlockThreads, 4) backward_kernel(PoolBatch batch) {
    for (std::uint32_t g = blockIdx.y; g < batch.num_groups; g += gridDim.y) backward_group(batch, g);
}

// Adds up what the slices of a block have summed, in a fixed tree; slice 0 has the result.
__device__ void add_slices(Quad* parts, std::uint32_t slice, std::uint32_t slices, std::uint32_t threads) {
    for (std::uint32_t half = slices / 2; half > 0; half /= 2) {
        __syncthreads();
        if (slice < half) add_quad(parts[threadIdx.x + half * threads], 1.0f, &parts[threadIdx.x]);
    }
}

// The largest of the block's first `threads` values, a power of two, for all.
__device__ std::uint32_t largest_of(std::uint32_t* values, std::uint32_t threads) {
    for (std::uint32_t half = threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half && values[threadIdx.x + half] > values[threadIdx.x])
            values[threadIdx.x] = values[threadIdx.x + half];
    }
    __syncthreads();
    return values[0];
}

// A block sums a piece of a long row: that is the row, or one of its partial sums. With kMerge it adds up a
// row's partial sums.
template <bool kMerge>
__global__ void __launch_bounds__(kBlockThreads, 4) long_kernel(PoolBatch batch) {
    __shared__ Quad parts[kBlockThreads];
    __shared__ std::uint32_t largest[kBlockThreads];
    const std::uint32_t count = batch.flags->num_long;
    for (std::uint32_t entry = blockIdx.x; entry < count; entry += gridDim.x) {
        const LongPiece which = batch.long_pieces[entry];
        if (kMerge && which.piece > 0) continue;  // all of the block, so no barrier is left out
        const BatchGroup group = batch.groups[which.group];
        const RowUses uses = uses_of(batch, group, which.row);
        const std::uint32_t pieces = num_pieces(group, uses);
        if (kMerge && pieces == 1) continue;
        const std::uint32_t quads = quads_of(group.dim), threads = threads_of_row(group.dim, kBlockThreads);
        const std::uint32_t slices = kBlockThreads / threads;
        const std::uint32_t q = threadIdx.x % threads, slice = threadIdx.x / threads;
        Quad& mine = parts[threadIdx.x];
        if (q >= quads) {
            mine = Quad{};
        } else if (kMerge) {
            mine = sum_partials(batch, group, uses, q, slice, slices);
        } else {
            mine = sum_uses(batch, group, uses_of_piece(uses, which.piece), q, slice, slices);
        }
        add_slices(parts, slice, slices, threads);
        if (kMerge || pieces == 1) {
            if (slice == 0) finish_quad(batch, &mine);
            float norm = 0.0f;
            if (group.wire == Wire::kScaledFp16) {
                largest[threadIdx.x] = slice == 0 ? largest_bits(mine) : 0;
                norm = __uint_as_float(largest_of(largest, threads));
            }
            if (slice == 0 && q < quads)
                encode_quad(group.wire, mine, norm, gradient_of(group, which.row), group.dim, q);
        } else if (slice == 0 && q < quads) {
            *partial_of(batch, group, uses, which.piece, q) = mine;
        }
        __syncthreads();  // before the next row's sums overwrite these
    }
}

// Blocks side by side, and a row of them for each of `count` features or groups; those beyond a grid's rows
// are done by its rows in turns.
dim3 grid_for(std::uint64_t threads, std::uint32_t count) {
    const std::uint64_t blocks = (threads + kBlockThreads - 1) / kBlockThreads;
    return {blocks < kMostBlocks ? static_cast<std::uint32_t>(blocks) : kMostBlocks,
            count < kMostRows ? count : kMostRows};
}

}  // namespace

cudaError_t cuda_pool_batch_forward(const PoolBatch& batch, std::uint64_t most_threads, cudaStream_t stream) {
    if (batch.num_features == 0 || most_threads == 0) return cudaSuccess;
    forward_kernel<<<grid_for(most_threads, batch.num_features), kBlockThreads, 0, stream>>>(batch);
    return cudaGetLastError();
}

cudaError_t cuda_pool_batch_backward(const PoolBatch& batch, std::uint64_t most_threads,
                                     cudaStream_t stream) {
    if (batch.num_groups == 0 || most_threads == 0) return cudaSuccess;
    backward_kernel<<<grid_for(most_threads, batch.num_groups), kBlockThreads, 0, stream>>>(batch);
    long_kernel<false><<<kLongBlocks, kBlockThreads, 0, stream>>>(batch);
    long_kernel<true><<<kLongBlocks, kBlockThreads, 0, stream>>>(batch);
    return cudaGetLastError();
}

}  // namespace persia
