// Arrays that a table reads or writes in place: checked, never converted.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "persia/span.h"

namespace py = pybind11;

namespace persia_bindings {

enum class Access { kRead, kWrite };

inline std::string shape_text(const std::initializer_list<py::ssize_t>& shape) {
    std::string text;
    for (const py::ssize_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return "[" + text + "]";
}

inline std::string array_text(const py::array& array, Access access) {
    std::string text;
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        text += (axis == 0 ? "" : ", ") + std::to_string(array.shape(axis));
    }
    text = std::string(py::str(array.dtype())) + " [" + text + "]";
    if (!(array.flags() & py::array::c_style)) text += ", not C-contiguous";
    if (access == Access::kWrite && !array.writeable()) text += ", read-only";
    return text;
}

inline bool has_dtype(const py::array& array, char kind, py::ssize_t itemsize) {
    const py::dtype dtype = array.dtype();
    return dtype.kind() == kind && dtype.itemsize() == itemsize &&
           (dtype.byteorder() == '=' || dtype.byteorder() == '|');
}

// Raises ValueError, with what was expected and got, unless the array fits and is aligned for its elements.
// `kinds`: the element types that would do, each as (numpy kind, bytes).
struct ElementType {
    char kind;
    py::ssize_t itemsize;
    const char* name;
};

inline void check_array(const py::array& array, const std::string& name,
                        std::initializer_list<ElementType> types, std::initializer_list<py::ssize_t> shape,
                        Access access) {
    bool good =
        array.ndim() == static_cast<py::ssize_t>(shape.size()) && (array.flags() & py::array::c_style);
    if (good) {
        py::ssize_t axis = 0;
        for (const py::ssize_t size : shape) good = good && array.shape(axis++) == size;
    }
    bool typed = false;
    std::string names;
    for (const ElementType& type : types) {
        typed = typed || has_dtype(array, type.kind, type.itemsize);
        names += (names.empty() ? "" : " or ") + std::string(type.name);
    }
    const auto address = reinterpret_cast<std::uintptr_t>(array.data());
    const bool aligned = array.size() == 0 || address % static_cast<std::uintptr_t>(array.itemsize()) == 0;
    if (good && typed && aligned && (access == Access::kRead || array.writeable())) return;
    throw py::value_error(name + ": expected a C-contiguous" +
                          (access == Access::kWrite ? std::string(", writable ") : std::string(" ")) + names +
                          " array of shape " + shape_text(shape) + ", got " + array_text(array, access) +
                          (aligned ? "" : ", misaligned"));
}

inline constexpr ElementType kUint64{'u', 8, "uint64"};
inline constexpr ElementType kUint8{'u', 1, "uint8"};
inline constexpr ElementType kUint32{'u', 4, "uint32"};
inline constexpr ElementType kFloat32{'f', 4, "float32"};
inline constexpr ElementType kFloat16{'f', 2, "float16"};

// The data of a checked array. Not mutable_data(): that one refuses again with a message of its own.
template <class T>
T* data_of(const py::array& array) {
    return static_cast<T*>(const_cast<void*>(array.data()));
}

template <class T>
persia::Span<T> span_of(const py::array& array) {
    return {data_of<T>(array), static_cast<std::size_t>(array.size())};
}

// Keys name the number of rows of a call, so they are checked first and give the other shapes.
inline py::ssize_t check_keys(const py::array& keys, const std::string& name) {
    if (keys.ndim() != 1) {
        throw py::value_error(name + ": expected a one-dimensional uint64 array, got " +
                              array_text(keys, Access::kRead));
    }
    check_array(keys, name, {kUint64}, {keys.shape(0)}, Access::kRead);
    return keys.shape(0);
}

}  // namespace persia_bindings
