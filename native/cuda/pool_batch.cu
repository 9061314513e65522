// Which thread of the GPU computes what of a batch: see persia/pool_batch.h.
#include "persia/cuda_pool_batch.h"

namespace persia {
namespace {

constexpr std::uint32_t kWarp = 32;
constexpr std::uint32_t kLongBlocks = 512;
constexpr std::uint64_t kMostBlocks = 1u << 20;

__global__ void forward_kernel(PoolBatch batch) {
    const BatchFeature f = batch.features[blockIdx.y];
    const std::uint64_t all = forward_threads(batch, f);
    const std::uint64_t step = static_cast<std::uint64_t>(gridDim.x) * blockDim.x;
    for (std::uint64_t t = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; t < all;
         t += step)
        forward_quad(batch, f, t);
}

// A row is shared by as many threads of a warp as it has quads; rows for `long_kernel` are put on its list.
__global__ void backward_kernel(PoolBatch batch) {
    const BatchGroup group = batch.groups[blockIdx.y];
    const std::uint32_t quads = quads_of(group.dim), threads = threads_of_row(group.dim, kWarp);
    const std::uint32_t lane = threadIdx.x % threads, rows = blockDim.x / threads;
    const bool scaled = group.wire == Wire::kScaledFp16;
    for (std::uint64_t first = static_cast<std::uint64_t>(blockIdx.x) * rows; first < group.num_rows;
         first += static_cast<std::uint64_t>(gridDim.x) * rows) {
        const auto u = static_cast<std::uint32_t>(first + threadIdx.x / threads);
        bool here = u < group.num_rows;
        RowUses uses{};
        if (here) uses = uses_of(batch, group, u);
        if (here && is_long(group, uses)) {
            // In any order: each row is summed by one block, whichever it is.
            if (lane == 0)
                batch.long_rows[atomicAdd(&batch.flags->num_long, 1u)] =
                    static_cast<std::uint64_t>(blockIdx.y) << 32 | u;
            here = false;
        }
        std::byte* const out = here ? gradient_of(group, u) : nullptr;
        Quad sum{};
        std::uint32_t most = 0;
        if (here) {
            for (std::uint32_t q = lane; q < quads; q += threads) {
                sum = sum_uses(batch, group, uses, q, 0, 1);
                finish_quad(batch, &sum);
                if (scaled) {
                    const std::uint32_t largest = largest_bits(sum);
                    most = largest > most ? largest : most;
                } else {
                    encode_quad(group.wire, sum, 0.0f, out, group.dim, q);
                }
            }
        }
        if (!scaled) continue;
        // All threads of the warp come here: the loop has as many turns for each of the block.
        for (std::uint32_t other = threads / 2; other > 0; other /= 2) {
            const std::uint32_t theirs = __shfl_xor_sync(0xffffffffu, most, other);
            most = theirs > most ? theirs : most;
        }
        if (!here) continue;
        for (std::uint32_t q = lane; q < quads; q += threads) {
            if (quads > threads) {  // more than a register's worth: summed again rather than kept
                sum = sum_uses(batch, group, uses, q, 0, 1);
                finish_quad(batch, &sum);
            }
            encode_quad(group.wire, sum, __uint_as_float(most), out, group.dim, q);
        }
    }
}

__global__ void long_kernel(PoolBatch batch) {
    __shared__ Quad parts[kBlockThreads];
    __shared__ std::uint32_t largest[kBlockThreads];
    const std::uint32_t count = batch.flags->num_long;
    for (std::uint32_t entry = blockIdx.x; entry < count; entry += gridDim.x) {
        const std::uint64_t which = batch.long_rows[entry];
        const BatchGroup group = batch.groups[which >> 32];
        const auto u = static_cast<std::uint32_t>(which);
        const RowUses uses = uses_of(batch, group, u);
        const std::uint32_t quads = quads_of(group.dim), threads = threads_of_row(group.dim, kBlockThreads);
        const std::uint32_t slices = kBlockThreads / threads;
        const std::uint32_t q = threadIdx.x % threads, slice = threadIdx.x / threads;
        Quad& mine = parts[threadIdx.x];
        mine = q < quads ? sum_uses(batch, group, uses, q, slice, slices) : Quad{};
        for (std::uint32_t half = slices / 2; half > 0; half /= 2) {
            __syncthreads();
            if (slice < half)
                for (int i = 0; i < 4; ++i) mine.v[i] += parts[threadIdx.x + half * threads].v[i];
        }
        if (slice == 0) finish_quad(batch, &mine);
        float norm = 0.0f;
        if (group.wire == Wire::kScaledFp16) {
            largest[threadIdx.x] = slice == 0 ? largest_bits(mine) : 0;
            for (std::uint32_t half = threads / 2; half > 0; half /= 2) {
                __syncthreads();
                if (threadIdx.x < half && largest[threadIdx.x + half] > largest[threadIdx.x])
                    largest[threadIdx.x] = largest[threadIdx.x + half];
            }
            __syncthreads();
            norm = __uint_as_float(largest[0]);
        }
        if (slice == 0 && q < quads) encode_quad(group.wire, mine, norm, gradient_of(group, u), group.dim, q);
        __syncthreads();  // before the next row's sums overwrite these
    }
}

std::uint32_t blocks_for(std::uint64_t threads) {
    const std::uint64_t blocks = (threads + kBlockThreads - 1) / kBlockThreads;
    return static_cast<std::uint32_t>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

}  // namespace

cudaError_t cuda_pool_batch_forward(const PoolBatch& batch, std::uint64_t most_threads, cudaStream_t stream) {
    if (batch.num_features == 0 || most_threads == 0) return cudaSuccess;
    forward_kernel<<<dim3(blocks_for(most_threads), batch.num_features), kBlockThreads, 0, stream>>>(batch);
    return cudaGetLastError();
}

cudaError_t cuda_pool_batch_backward(const PoolBatch& batch, std::uint64_t most_threads,
                                     cudaStream_t stream) {
    if (batch.num_groups == 0 || most_threads == 0) return cudaSuccess;
    backward_kernel<<<dim3(blocks_for(most_threads), batch.num_groups), kBlockThreads, 0, stream>>>(batch);
    long_kernel<<<kLongBlocks, kBlockThreads, 0, stream>>>(batch);
    return cudaGetLastError();
}

}  // namespace persia
