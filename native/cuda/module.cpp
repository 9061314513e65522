// The extension module `_cuda`: the GPU's side of gather_pool. Needs a driver only when it is used.
#include <stdexcept>
#include <string>

#include "../bindings/pool_batch_args.h"
#include "persia/cuda_pool_batch.h"

namespace py = pybind11;

namespace {

void check(cudaError_t error) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error) + " (" +
                                 cudaGetErrorName(error) + ")");
}

// "" if kernels of this build can run on the device, else why not.
std::string problem(int device) {
    int driver = 0, count = 0;
    if (const cudaError_t error = cudaDriverGetVersion(&driver); error != cudaSuccess || driver == 0)
        return "there is no CUDA driver";
    const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
    if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess)
        return std::string(cudaGetErrorString(error)) + ": the driver is for CUDA " + version(driver) +
               ", persia_hpc._cuda was built with " + version(CUDART_VERSION);
    if (device >= count)
        return "device " + std::to_string(device) + " of " + std::to_string(count) + " doesn't exist";
    cudaDeviceProp properties;
    if (const cudaError_t error = cudaGetDeviceProperties(&properties, device); error != cudaSuccess)
        return cudaGetErrorString(error);
    if (properties.major < 8)
        return std::string(properties.name) + " has compute capability " + std::to_string(properties.major) +
               "." + std::to_string(properties.minor) + ", the kernels are for 8.0 and newer";
    return "";
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of persia_hpc, in a module that is there if set-up found nvcc.";
    m.attr("cuda_version") = CUDART_VERSION;
    m.def("problem", &problem, py::arg("device"),
          "Tells why the kernels can't run on a device; \"\" if they can.");
    persia_bindings::bind_pool_batch(
        m,
        [](const persia::PoolBatch& batch, std::uint64_t most_threads, std::uintptr_t stream) {
            check(
                persia::cuda_pool_batch_forward(batch, most_threads, reinterpret_cast<cudaStream_t>(stream)));
        },
        [](const persia::PoolBatch& batch, std::uint64_t most_threads, std::uintptr_t stream) {
            check(persia::cuda_pool_batch_backward(batch, most_threads,
                                                   reinterpret_cast<cudaStream_t>(stream)));
        });
}
