// Launches of the kernels of pool_batch.h on a stream of a CUDA device; asynchronous.
#pragma once

#include <cuda_runtime_api.h>

#include "persia/pool_batch.h"

namespace persia {

// most_threads: the largest `forward_tasks` of a feature.
cudaError_t cuda_pool_batch_forward(const PoolBatch& batch, std::uint64_t most_threads, cudaStream_t stream);

// most_threads: the largest product, over groups, of rows and `threads_of_row(dim, 32)`. flags->num_long must
// be 0.
cudaError_t cuda_pool_batch_backward(const PoolBatch& batch, std::uint64_t most_threads, cudaStream_t stream);

}  // namespace persia
