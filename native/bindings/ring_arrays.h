// Arrays as records carry them: checked on the way in, views of the ring on the way out.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "arrays.h"
#include "persia/ring.h"

namespace persia_bindings {

using persia::ArrayEntry;
using persia::BodyLayout;
using persia::Message;

constexpr std::size_t kMaxArrays = 0xFFFF;
constexpr std::uint64_t kLargeBytes = 65536;  // from here on copying lets other threads of the process run

// The order is part of the format: a directory has positions in this list.
constexpr std::array<const char*, 12> kNames = {"bool",   "int8",  "uint8",  "int16",   "uint16",  "int32",
                                                "uint32", "int64", "uint64", "float16", "float32", "float64"};
constexpr std::array<int, 12> kNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 23, 11, 12};  // NumPy's type numbers
constexpr std::array<std::uint64_t, 12> kBytes = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 4, 8};

// What a user's arrays may do wrong: RingSender makes a UserError of it.
[[noreturn]] inline void refuse(const std::string& text) { throw py::value_error(text); }

inline py::dtype dtype_of(std::uint32_t code) {
    static const auto* const all = [] {
        auto* made = new std::vector<py::dtype>;  // never freed: Python may be gone before static objects
        for (const char* name : kNames) made->emplace_back(name);
        return made;
    }();
    return (*all)[code];
}

inline std::uint32_t code_of(const py::dtype& dtype) {
    int type_number = dtype.num();
    if (type_number == 9 || type_number == 10) type_number -= 2;  // "long long" where int64 is "long"
    const char order = dtype.byteorder();
    for (std::uint32_t code = 0; code < kNumbers.size(); ++code) {
        if (kNumbers[code] == type_number && (order == '=' || order == '|')) return code;
    }
    std::string names;
    for (const char* name : kNames) names += (names.empty() ? "" : ", ") + std::string(name);
    refuse("records carry arrays of " + names + " (native byte order), got " + std::string(py::str(dtype)) +
           "; convert it first");
}

inline ArrayEntry entry_of(const py::dtype& dtype, const std::vector<py::ssize_t>& shape) {
    const std::uint32_t code = code_of(dtype);
    if (shape.size() != 1 && shape.size() != 2) {
        refuse("records carry arrays of one or two dimensions, got shape " +
               std::string(py::str(py::cast(shape))) + "; reshape it");
    }
    for (const py::ssize_t length : shape) {
        if (length < 0)
            refuse("got shape " + std::string(py::str(py::cast(shape))) + ", expected no negative lengths");
    }
    const auto size = static_cast<std::uint32_t>(shape.size());
    return {code, size, static_cast<std::uint64_t>(shape[0]),
            size == 1 ? 1 : static_cast<std::uint64_t>(shape[1])};
}

inline void check_count(std::size_t count) {
    if (count > kMaxArrays) {
        refuse("a record carries at most " + std::to_string(kMaxArrays) + " arrays, got " +
               std::to_string(count) + "; concatenate some");
    }
}

inline persia::RecordFields fields_of(const py::int_& kind, const py::int_& step, const py::int_& trainer,
                                      const py::int_& tag) {
    const auto field = [&](const py::int_& value, std::uint64_t largest) {
        const std::uint64_t number = PyLong_AsUnsignedLongLong(value.ptr());
        if (!PyErr_Occurred() && number <= largest) return number;
        PyErr_Clear();
        refuse("got record fields kind=" + std::string(py::str(kind)) +
               ", step=" + std::string(py::str(step)) + ", trainer=" + std::string(py::str(trainer)) +
               ", tag=" + std::string(py::str(tag)) + ", expected 16, 64, 32 and 64 bits without sign");
    };
    return {static_cast<std::uint16_t>(field(kind, 0xFFFF)),
            static_cast<std::uint32_t>(field(trainer, 0xFFFFFFFF)), field(step, UINT64_MAX),
            field(tag, UINT64_MAX)};
}

struct Outgoing {
    Message message;
    std::vector<py::array> held;
};

inline py::array array_of(const py::handle& object) {
    if (!py::isinstance<py::array>(object) ||
        !(py::reinterpret_borrow<py::array>(object).flags() & py::array::c_style)) {
        refuse("records carry C-contiguous numpy arrays, got " + describe(object) + "; copy it first");
    }
    return py::reinterpret_borrow<py::array>(object);
}

inline std::vector<py::ssize_t> shape_of(const py::array& array) {
    return {array.shape(), array.shape() + array.ndim()};
}

inline Outgoing make_outgoing(const py::int_& kind, const py::int_& step, const py::int_& trainer,
                              const py::int_& tag, const py::sequence& arrays) {
    Outgoing outgoing;
    outgoing.message.fields = fields_of(kind, step, trainer, tag);
    check_count(arrays.size());
    BodyLayout layout(arrays.size());
    const auto piece = [&](const py::array& array, std::uint64_t& offset) {
        if (array.nbytes() == 0) return;
        const auto bytes = static_cast<std::uint64_t>(array.nbytes());
        outgoing.message.pieces.push_back({static_cast<const std::uint8_t*>(array.data()), offset, bytes});
        outgoing.held.push_back(array);
        offset += bytes;
    };
    for (const py::handle item : arrays) {
        if (!py::isinstance<py::list>(item)) {
            const py::array array = array_of(item);
            layout.add(entry_of(array.dtype(), shape_of(array)),
                       static_cast<std::uint64_t>(array.itemsize()));
            std::uint64_t offset = layout.offsets.back();
            piece(array, offset);
            continue;
        }
        // Sent as the concatenation along axis 0.
        const auto parts = py::reinterpret_borrow<py::list>(item);
        if (parts.empty()) refuse("got an empty list of arrays, expected at least one, for dtype and shape");
        const py::array first = array_of(parts[0]);
        ArrayEntry whole = entry_of(first.dtype(), shape_of(first));
        whole.rows = 0;
        for (const py::handle part : parts) {
            const py::array array = array_of(part);
            const ArrayEntry entry = entry_of(array.dtype(), shape_of(array));
            if (entry.dtype != whole.dtype || entry.num_dimensions != whole.num_dimensions ||
                entry.columns != whole.columns) {
                refuse("arrays sent as one must agree in dtype and in all but the first dimension, got " +
                       describe(first) + " and " + describe(array));
            }
            whole.rows += entry.rows;
        }
        layout.add(whole, kBytes[whole.dtype]);
        std::uint64_t offset = layout.offsets.back();
        for (const py::handle part : parts) piece(py::reinterpret_borrow<py::array>(part), offset);
    }
    outgoing.message.layout = std::move(layout);
    return outgoing;
}

// An array over memory that `owner` keeps.
inline py::array view(std::uint32_t dtype, const ArrayEntry& entry, std::uint8_t* data,
                      const py::handle& owner) {
    std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(entry.rows)};
    if (entry.num_dimensions == 2) shape.push_back(static_cast<py::ssize_t>(entry.columns));
    return py::array(dtype_of(dtype), std::move(shape), data, owner);
}

// Calls do_each(entry, where it begins in the body) for each array. RingError for a damaged directory.
template <class DoEach>
void each_array(const std::uint8_t* body, std::uint64_t body_bytes, std::uint64_t num_arrays,
                const DoEach& do_each) {
    if (persia::aligned(num_arrays * sizeof(ArrayEntry)) > body_bytes) {
        throw persia::RingError("got a body of " + std::to_string(body_bytes) + " bytes, too few for " +
                                std::to_string(num_arrays) + " arrays: a damaged header");
    }
    const auto* const directory = reinterpret_cast<const ArrayEntry*>(body);
    std::uint64_t begin = persia::aligned(num_arrays * sizeof(ArrayEntry));
    for (std::size_t i = 0; i < num_arrays; ++i) {
        const ArrayEntry entry = directory[i];
        if (entry.dtype >= kNames.size() || entry.num_dimensions < 1 || entry.num_dimensions > 2) {
            throw persia::RingError(
                "array " + std::to_string(i) + " has dtype code " + std::to_string(entry.dtype) + ", " +
                std::to_string(entry.num_dimensions) + " dimensions: a damaged directory");
        }
        const std::uint64_t end = persia::array_end(entry, kBytes[entry.dtype], begin, body_bytes, i);
        do_each(entry, begin);
        begin = end;
    }
}

inline py::list parse(std::uint8_t* body, std::uint64_t body_bytes, std::uint64_t num_arrays,
                      const py::handle& owner) {
    py::list arrays;
    each_array(body, body_bytes, num_arrays, [&](const ArrayEntry& entry, std::uint64_t begin) {
        arrays.append(view(entry.dtype, entry, body + begin, owner));
    });
    return arrays;
}

}  // namespace persia_bindings
