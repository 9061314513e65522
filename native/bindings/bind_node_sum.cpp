#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "persia/node_sum.h"
#include "wire_arrays.h"

namespace {

using namespace persia_bindings;

std::uint64_t nanoseconds(double seconds) {
    return seconds > 0 ? static_cast<std::uint64_t>(seconds * 1e9) : 0;
}

struct NodeSum {
    std::vector<py::array> held;  // keeps the memory
    std::vector<std::size_t> lengths;
    persia::Wire wire;
    std::size_t rank;
    std::unique_ptr<persia::NodeSum> sums;

    NodeSum(const std::vector<py::object>& members, std::size_t rank_, std::vector<std::size_t> lengths_,
            const std::string& wire_)
        : lengths(std::move(lengths_)), wire(wire_named(wire_)), rank(rank_) {
        std::vector<persia::Span<std::uint8_t>> spans;
        for (const auto& member : members) {
            held.push_back(check_array(member, "members", {kUint8}, {any('N')}, Access::kWrite));
            spans.push_back(span_of<std::uint8_t>(held.back()));
        }
        sums = std::make_unique<persia::NodeSum>(std::move(spans), rank, lengths, wire);
    }

    std::size_t total() const {
        std::size_t sum = 0;
        for (const std::size_t length : lengths) sum += length;
        return sum;
    }

    // [bytes] of this rank's slots, [n] of the sums: views that keep the memory.
    py::array_t<std::uint8_t> slots() {
        const std::size_t bytes = total() * (wire == persia::Wire::kFp32 ? 4 : 2);
        return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(bytes),
                                         data_of<std::uint8_t>(held[rank]) + persia::NodeSum::slots_offset(),
                                         held[rank]);
    }
    py::array_t<float> all() {
        std::uint8_t* const begin =
            data_of<std::uint8_t>(held[0]) + persia::NodeSum::sums_offset(lengths, wire);
        return py::array_t<float>(static_cast<py::ssize_t>(total()), reinterpret_cast<float*>(begin),
                                  held[0]);
    }
};

constexpr const char* kNodeSum =
    R"(Sums buckets of the ranks of a node, in memory that they share. One thread at a time uses it.

Each rank fills its slot of a bucket and posts it; when all have, whoever is awake sums. Elements are added in
the order of ranks, as fp32. Slots and sums hold the buckets one after the other.
Shapes: members, the ranks' memories in their order, uint8 [bytes(lengths, wire, first)], zero at the start
and on a cache line.
Raises: ValueError for memory that is too small, and for wire formats that have no single elements.)";

}  // namespace

void bind_node_sum(py::module_& m) {
    py::class_<NodeSum>(m, "NodeSum", kNodeSum)
        .def(py::init<const std::vector<py::object>&, std::size_t, std::vector<std::size_t>,
                      const std::string&>(),
             py::arg("members"), py::arg("rank"), py::arg("lengths"), py::arg("wire"),
             "Takes the elements of each bucket and their format: fp32, fp16 or bf16.")
        .def_static(
            "bytes",
            [](const std::vector<std::size_t>& lengths, const std::string& wire, bool first) {
                return persia::NodeSum::bytes(lengths, wire_named(wire), first);
            },
            py::arg("lengths"), py::arg("wire"), py::arg("first"),
            "Returns the bytes of a rank's memory; the first rank's has the sums too.")
        .def_property_readonly("slots", &NodeSum::slots, "This rank's slots, uint8 [their bytes].")
        .def_property_readonly("sums", &NodeSum::all, "The sums, float32 [n].")
        .def(
            "post", [](NodeSum& self) { self.sums->post(); }, py::call_guard<py::gil_scoped_release>(),
            "Says that the slot of the next bucket is filled; buckets come in order, again and again.")
        .def(
            "help", [](NodeSum& self) { self.sums->help(); }, py::call_guard<py::gil_scoped_release>(),
            "Sums what all have posted and nobody has taken; doesn't wait.")
        .def(
            "summed", [](const NodeSum& self, std::uint64_t number) { return self.sums->summed(number); },
            py::arg("number"), "Returns whether the sum of the bucket posted as the number-th is there.")
        .def(
            "wait_summed",
            [](NodeSum& self, std::uint64_t number, double spin_seconds, double sleep_seconds) {
                const py::gil_scoped_release nogil;
                return self.sums->wait_summed(number, nanoseconds(spin_seconds), nanoseconds(sleep_seconds));
            },
            py::arg("number"), py::arg("spin_seconds"), py::arg("sleep_seconds"),
            "Waits for that sum: spins, then sleeps once; returns whether it is there.")
        .def(
            "publish", [](NodeSum& self) { self.sums->publish(); }, py::call_guard<py::gil_scoped_release>(),
            "Says, on the first rank, that the next bucket's sum has what other nodes add to it.")
        .def(
            "wait_published",
            [](NodeSum& self, std::uint64_t number, double spin_seconds, double sleep_seconds) {
                const py::gil_scoped_release nogil;
                return self.sums->wait_published(number, nanoseconds(spin_seconds),
                                                 nanoseconds(sleep_seconds));
            },
            py::arg("number"), py::arg("spin_seconds"), py::arg("sleep_seconds"),
            "Waits until the number-th bucket was published, as `wait_summed` does.");
}
