// The same two functions for `_native` (on the host) and `_cuda`: addresses in, nothing checked, since they
// may be a device's. Callers: trainer/pooling/cuda_kernel.py.
#pragma once

#include <pybind11/pybind11.h>

#include "persia/pool_batch.h"

namespace persia_bindings {

namespace py = pybind11;

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

inline constexpr const char* kPoolBatchForward =
    R"(Computes pooled vectors and sequences of all features from rows and indices.

Numbers that are named after an array are its address: on the device for `_cuda`, where the call is
asynchronous, on the host for `_native`. Nothing is checked. See native/include/persia/pool_batch.h.
most_threads: the largest `forward_tasks` of a feature.
Raises: RuntimeError by CUDA.)";

inline constexpr const char* kPoolBatchBackward =
    R"(Computes the gradients of the unique rows, as they travel, from those of the outputs.

Addresses as in `pool_batch_forward`. `flags` are zero before.
most_threads: the largest product, over groups, of rows and the threads that share one (at most 32).
Raises: RuntimeError by CUDA.)";

// forward(batch, most_threads, stream), backward(...): raise what they have to say.
template <typename Forward, typename Backward>
void bind_pool_batch(py::module_& m, const Forward& forward, const Backward& backward) {
    m.def(
        "pool_batch_forward",
        [forward](std::uintptr_t features, std::uint32_t num_features, std::uint32_t num_samples,
                  std::uintptr_t indices, bool narrow, std::uintptr_t samples, std::uintptr_t flags,
                  std::uint64_t most_threads, std::uintptr_t stream) {
            persia::PoolBatch batch{};
            batch.features = at<const persia::BatchFeature>(features);
            batch.num_features = num_features;
            batch.num_samples = num_samples;
            batch.indices = at<const void>(indices);
            batch.narrow = narrow;
            batch.samples = at<std::uint32_t>(samples);
            batch.flags = at<persia::BatchFlags>(flags);
            const py::gil_scoped_release nogil;
            forward(batch, most_threads, stream);
        },
        py::kw_only(), py::arg("features"), py::arg("num_features"), py::arg("num_samples"),
        py::arg("indices"), py::arg("narrow"), py::arg("samples"), py::arg("flags"), py::arg("most_threads"),
        py::arg("stream"), kPoolBatchForward);
    m.def(
        "pool_batch_backward",
        [backward](std::uintptr_t features, std::uintptr_t groups, std::uint32_t num_groups,
                   std::uintptr_t samples, std::uintptr_t row_offsets, std::uintptr_t positions,
                   std::uintptr_t factor, std::uintptr_t long_pieces, std::uintptr_t flags,
                   std::uint64_t most_threads, std::uintptr_t stream) {
            persia::PoolBatch batch{};
            batch.features = at<const persia::BatchFeature>(features);
            batch.groups = at<const persia::BatchGroup>(groups);
            batch.num_groups = num_groups;
            batch.samples = at<std::uint32_t>(samples);
            batch.row_offsets = at<const std::uint32_t>(row_offsets);
            batch.positions = at<const std::uint32_t>(positions);
            batch.factor = at<const float>(factor);
            batch.long_pieces = at<persia::LongPiece>(long_pieces);
            batch.flags = at<persia::BatchFlags>(flags);
            const py::gil_scoped_release nogil;
            backward(batch, most_threads, stream);
        },
        py::kw_only(), py::arg("features"), py::arg("groups"), py::arg("num_groups"), py::arg("samples"),
        py::arg("row_offsets"), py::arg("positions"), py::arg("factor"), py::arg("long_pieces"),
        py::arg("flags"), py::arg("most_threads"), py::arg("stream"), kPoolBatchBackward);
}

}  // namespace persia_bindings
