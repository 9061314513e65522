// NumPy arrays at the boundary: checked on the way in, owned without a copy on the way out.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "persia/aligned_array.h"

namespace py = pybind11;

namespace persia_bindings {

inline std::string describe(const py::handle& object) {
    if (!py::isinstance<py::array>(object)) return py::str(py::type::of(object).attr("__name__"));
    const auto array = py::reinterpret_borrow<py::array>(object);
    std::string shape;
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        shape += (i ? ", " : "") + std::to_string(array.shape(i));
    }
    return std::string(py::str(array.dtype())) + " [" + shape + "]" +
           ((array.flags() & py::array::c_style) ? "" : " that is not C-contiguous");
}

// The object as a C-contiguous array of T with `ndim` axes; raises ValueError saying what was expected and
// got.
template <typename T>
py::array_t<T> checked(const py::handle& object, py::ssize_t ndim, const std::string& name) {
    if (py::isinstance<py::array>(object)) {
        const auto array = py::reinterpret_borrow<py::array>(object);
        if (array.dtype().is(py::dtype::of<T>()) || array.dtype().equal(py::dtype::of<T>())) {
            if (array.ndim() == ndim && (array.flags() & py::array::c_style)) {
                return py::reinterpret_borrow<py::array_t<T>>(object);
            }
        }
    }
    throw py::value_error(name + ": expected a C-contiguous " + std::string(py::str(py::dtype::of<T>())) +
                          " array with " + std::to_string(ndim) + " axes, got " + describe(object));
}

// An array that frees the memory when Python drops it.
template <typename T>
py::array_t<T> to_numpy(persia::AlignedArray<T>&& values, std::vector<py::ssize_t> shape) {
    T* const data = values.release();
    const py::capsule owner(data, [](void* memory) { std::free(memory); });
    return py::array_t<T>(std::move(shape), data, owner);
}

template <typename T>
py::array_t<T> to_numpy(persia::AlignedArray<T>&& values) {
    const auto size = static_cast<py::ssize_t>(values.size());
    return to_numpy(std::move(values), {size});
}

}  // namespace persia_bindings
