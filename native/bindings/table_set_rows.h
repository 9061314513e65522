// A server's rows as Python passes them, and as records carry them. G: dim groups.
#pragma once

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "persia/table_set.h"
#include "ring_arrays.h"
#include "wire_arrays.h"

namespace persia_bindings {

using persia::TableSet;

using Groups = std::vector<py::object>;  // [G] arrays of rows

template <class Byte>
std::vector<persia::RowsOn<Byte>> to_rows(const TableSet& self, const Groups& arrays,
                                          const std::string& name) {
    const auto& dims = self.dims();
    if (arrays.size() != dims.size()) {
        throw py::value_error(name + ": got " + std::to_string(arrays.size()) + " arrays, expected " +
                              std::to_string(dims.size()) + ", one for each dim group");
    }
    std::vector<persia::RowsOn<Byte>> rows;
    for (std::size_t g = 0; g < dims.size(); ++g) {
        rows.push_back(rows_of<Byte>(arrays[g], name + "[" + std::to_string(g) + "]", any('U'),
                                     static_cast<py::ssize_t>(dims[g])));
    }
    return rows;
}

// How records carry rows in a wire format: the position of their dtype in kNames, and the row's elements.
inline ArrayEntry entry_of_rows(persia::Wire wire, std::uint64_t count, std::uint32_t dim) {
    const std::uint32_t code = wire == persia::Wire::kFp32 ? 10 : wire == persia::Wire::kFp16 ? 9 : 4;
    return {code, 2, count, persia::wire_bytes(wire, dim) / kBytes[code]};
}

}  // namespace persia_bindings

// The calls of bind_ahead.cpp.
void bind_ahead(py::class_<persia::TableSet>& set);
