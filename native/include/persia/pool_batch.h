// gather_pool for a GPU: all features of a batch, whatever their dims, in one launch for each direction.
//
// A thread of the forward makes four elements of an output, a group of threads of the backward a row's
// gradient. What a thread computes is in pool_batch_forward.h and pool_batch_backward.h, for both compilers:
// CUDA kernels (native/cuda/pool_batch.cu) say which thread computes what, and `pool_batch_*` below do the
// same one after the other on the CPU, which is how the tests reach this code without a GPU. The semantics
// are those of pool.h.
#pragma once

#include "persia/pool_batch_backward.h"
#include "persia/pool_batch_forward.h"

namespace persia {

// The kernels' work on the CPU, with the same sums in the same order.
void pool_batch_forward(const PoolBatch& batch);
void pool_batch_backward(const PoolBatch& batch);

}  // namespace persia
