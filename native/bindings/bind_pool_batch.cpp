#include "bindings.h"
#include "pool_batch_args.h"

void bind_pool_batch(py::module_& m) {
    persia_bindings::bind_pool_batch(
        m,
        [](const persia::PoolBatch& batch, std::uint64_t, std::uintptr_t) {
            persia::pool_batch_forward(batch);
        },
        [](const persia::PoolBatch& batch, std::uint64_t, std::uintptr_t) {
            persia::pool_batch_backward(batch);
        });
}
