#include <pybind11/stl.h>

#include <cstring>

#include "bindings.h"
#include "parts.h"
#include "places.h"

namespace {

using namespace persia_bindings;
using persia::Shares;

py::ssize_t rows_between(const Shares& self, std::size_t first_group, std::size_t last_group) {
    return static_cast<py::ssize_t>(self.group_begin(last_group)) -
           static_cast<py::ssize_t>(self.group_begin(first_group));
}

Parts parts_of(const std::shared_ptr<Shares>& self, const py::handle& object, std::size_t first_group,
               std::size_t last_group) {
    Parts parts;
    parts.array = array_of(object);
    parts.entry = entry_of(parts.array.dtype(), shape_of(parts.array));
    const py::ssize_t rows = rows_between(*self, first_group, last_group);
    if (parts.array.shape(0) != rows) {
        refuse("expected an array of " + std::to_string(rows) + " rows, got " + describe(object));
    }
    parts.row_bytes = parts.entry.columns * static_cast<std::uint64_t>(parts.array.itemsize());
    parts.shares = self;
    parts.first = self->group_begin(first_group);
    return parts;
}

Parts rows_parts(const std::shared_ptr<Shares>& self, const py::object& array) {
    return parts_of(self, array, 0, self->num_groups());
}

std::vector<Parts> group_parts(const std::shared_ptr<Shares>& self, const py::sequence& arrays) {
    if (arrays.size() != self->num_groups()) {
        refuse("expected an array for each of " + std::to_string(self->num_groups()) + " groups, got " +
               std::to_string(arrays.size()));
    }
    std::vector<Parts> found;
    for (std::size_t g = 0; g < self->num_groups(); ++g) {
        found.push_back(parts_of(self, py::object(arrays[g]), g, g + 1));
        found.back().group = g;
    }
    return found;
}

Parts counts_parts(const std::shared_ptr<Shares>& self) {
    Parts parts;
    parts.shares = self;
    parts.counts = true;
    parts.row_bytes = sizeof(std::uint32_t);
    const auto servers = static_cast<py::ssize_t>(self->num_servers());
    const auto tables = static_cast<py::ssize_t>(self->num_tables());
    // The array keeps `self`, whose memory it shows.
    parts.array = py::array_t<std::uint32_t>({servers, tables},
                                             servers == 0 ? nullptr : self->counts(0).data(), py::cast(self));
    parts.entry = entry_of(parts.array.dtype(), {tables});
    return parts;
}

void check_server(const Shares& shares, std::size_t server) {
    if (server >= shares.num_servers()) {
        throw py::value_error("server: got " + std::to_string(server) + ", expected less than " +
                              std::to_string(shares.num_servers()));
    }
}

py::array part(const Parts& self, std::size_t server) {
    check_server(*self.shares, server);
    Message message;
    self.add(server, message);
    const ArrayEntry& entry = message.layout.directory[0];
    std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(entry.rows)};
    if (entry.num_dimensions == 2) shape.push_back(static_cast<py::ssize_t>(entry.columns));
    py::array result(dtype_of(entry.dtype), std::move(shape));
    auto* to = static_cast<std::uint8_t*>(result.mutable_data());
    for (const Message::Piece& piece : message.pieces) {
        std::memcpy(to, piece.data, piece.bytes);
        to += piece.bytes;
    }
    return result;
}

void fill(const Shares& self, std::size_t server, const py::sequence& rows, const py::sequence& into,
          const py::object& before) {
    check_server(self, server);
    const Places places(self, into, before);
    const Body from(rows);
    std::uint64_t total_bytes = 0;
    for (const Body::Part& part : from.parts) {
        total_bytes += part.entry.rows * part.entry.columns * kBytes[part.entry.dtype];
    }
    if (total_bytes < kLargeBytes) {
        places.fill(server, from);
    } else {
        const py::gil_scoped_release nogil;
        places.fill(server, from);
    }
}

constexpr const char* kFill = R"(Copies the rows that a server has sent to their places in a batch.

Shapes: rows and into: for each group [.., D_g], the server's rows and all rows. before uint32 [U+1], if only
some rows travel: before[u] of them lie before row u.
Raises: ValueError for arrays of other sizes.)";

}  // namespace

void bind_shares(py::module_& m) {
    py::class_<Parts>(m, "Parts",
                      "Holds an array of which each server gets a part: its rows, one after the other.")
        .def("part", &part, py::arg("server"), "Returns a copy of what a server gets.");
    py::class_<Shares, std::shared_ptr<Shares>>(m, "Shares", "Says which rows of a batch each server owns.")
        .def_property_readonly("counts", &counts_parts, "uint32 [T] for each server: its rows of each table.")
        .def("rows", &rows_parts, py::arg("array"),
             "Returns the servers' parts of an array [U, ...] of the batch's rows.")
        .def("group_rows", &group_parts, py::arg("arrays"),
             "Returns the servers' parts of one array [U_g, ...] for each group.")
        .def("fill", &fill, py::arg("server"), py::arg("rows"), py::arg("into"), py::arg("before"), kFill);
}
