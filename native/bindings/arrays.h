// NumPy arrays at the boundary: checked on the way in and never converted, owned without a copy on the way
// out.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "persia/aligned_array.h"
#include "persia/span.h"

namespace py = pybind11;

namespace persia_bindings {

enum class Access { kRead, kWrite };

struct ElementType {
    char kind;  // NumPy's
    py::ssize_t itemsize;
    const char* name;
};
inline constexpr ElementType kUint8{'u', 1, "uint8"};
inline constexpr ElementType kUint16{'u', 2, "uint16"};
inline constexpr ElementType kUint32{'u', 4, "uint32"};
inline constexpr ElementType kUint64{'u', 8, "uint64"};
inline constexpr ElementType kInt64{'i', 8, "int64"};
inline constexpr ElementType kFloat16{'f', 2, "float16"};
inline constexpr ElementType kFloat32{'f', 4, "float32"};
inline constexpr ElementType kFloat64{'f', 8, "float64"};

// As a length in a shape: whatever it is; the letter names it in messages.
constexpr py::ssize_t any(char letter) { return -letter; }

// An array's dtype and shape, or the type of what is no array, for error messages.
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

inline bool has_dtype(const py::array& array, const ElementType& type) {
    const py::dtype dtype = array.dtype();
    return dtype.kind() == type.kind && dtype.itemsize() == type.itemsize &&
           (dtype.byteorder() == '=' || dtype.byteorder() == '|');
}

// The object as a C-contiguous array of one of the types and of this shape, aligned for its elements. Raises
// ValueError with what was expected and got.
inline py::array check_array(const py::handle& object, const std::string& name,
                             std::initializer_list<ElementType> types,
                             std::initializer_list<py::ssize_t> shape, Access access = Access::kRead) {
    std::string got;
    if (py::isinstance<py::array>(object)) {
        auto array = py::reinterpret_borrow<py::array>(object);
        bool good = array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
                    (array.flags() & py::array::c_style) != 0;
        for (py::ssize_t axis = 0; good && axis < array.ndim(); ++axis) {
            const py::ssize_t size = shape.begin()[axis];
            good = size < 0 || size == array.shape(axis);
        }
        bool typed = false;
        for (const ElementType& type : types) typed = typed || has_dtype(array, type);
        const bool writable = access == Access::kRead || array.writeable();
        const auto address = reinterpret_cast<std::uintptr_t>(array.data());
        const bool aligned =
            array.size() == 0 || address % static_cast<std::uintptr_t>(array.itemsize()) == 0;
        if (good && typed && writable && aligned) return array;
        got = std::string(writable ? "" : ", read-only") + (aligned ? "" : ", misaligned");
    }
    std::string names, lengths;
    for (const ElementType& type : types) names += (names.empty() ? "" : " or ") + std::string(type.name);
    for (const py::ssize_t size : shape) {
        lengths += (lengths.empty() ? "" : ", ") +
                   (size < 0 ? std::string(1, static_cast<char>(-size)) : std::to_string(size));
    }
    throw py::value_error(name + ": expected a C-contiguous" +
                          (access == Access::kWrite ? ", writable " : " ") + names + " array of shape [" +
                          lengths + "], got " + describe(object) + got);
}

// The data of a checked array. Not mutable_data(): that one refuses again with a message of its own.
template <class T>
T* data_of(const py::array& array) {
    return static_cast<T*>(const_cast<void*>(array.data()));
}

template <class T>
persia::Span<T> span_of(const py::array& array) {
    return {data_of<T>(array), static_cast<std::size_t>(array.size())};
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
