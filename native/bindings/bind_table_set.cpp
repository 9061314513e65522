// A server's tables for calls that concern a whole record.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "locked_table.h"
#include "pending_pull.h"
#include "ring_ends.h"
#include "table_set_rows.h"

namespace {

using namespace persia_bindings;
using persia::RecordKeys;
using persia::TableSet;

RecordKeys to_keys(const TableSet& self, const py::object& keys, const py::object& counts,
                   const std::string& prefix = "") {
    const auto tables = static_cast<py::ssize_t>(self.num_tables());
    return {span_of<const Key>(check_array(keys, prefix + "keys", {kUint64}, {any('U')})),
            span_of<const std::uint32_t>(check_array(counts, prefix + "counts", {kUint32}, {tables}))};
}

persia::Span<const std::uint8_t> to_wanted(const py::object& wanted, py::ssize_t n) {
    if (wanted.is_none()) return {};
    return span_of<const std::uint8_t>(check_array(wanted, "wanted", {kUint8}, {n}));
}

std::vector<std::uint64_t> row_counts(const TableSet& self, const py::object& counts,
                                      const py::object& wanted) {
    const auto tables = static_cast<py::ssize_t>(self.num_tables());
    const auto each = span_of<const std::uint32_t>(check_array(counts, "counts", {kUint32}, {tables}));
    return self.row_counts(each,
                           to_wanted(wanted, std::accumulate(each.begin(), each.end(), py::ssize_t{0})));
}

persia::ConstRows rows_in(const Body::Part& part, std::uint32_t dim) {
    for (const persia::Wire wire :
         {persia::Wire::kFp32, persia::Wire::kFp16, persia::Wire::kBf16, persia::Wire::kScaledFp16}) {
        const ArrayEntry expected = entry_of_rows(wire, part.entry.rows, dim);
        if (std::memcmp(&expected, &part.entry, sizeof expected) == 0) {
            return {reinterpret_cast<const std::byte*>(part.data), wire, part.entry.rows};
        }
    }
    throw std::invalid_argument("expected rows of dim " + std::to_string(dim) + ", got " +
                                describe(part.entry));
}

void pull_into(TableSet& self, PendingPull& pull, const std::vector<persia::Rows>& rows) {
    const std::uint32_t at = check_step(static_cast<std::int64_t>(pull.step));
    pull.prepare();
    const py::gil_scoped_release nogil;
    self.pull(pull.of(), at, rows, pull.slots, pull.wanted, pull.epochs);
}

void pull(TableSet& self, PendingPull& pull, const Groups& out) {
    pull_into(self, pull, to_rows<std::byte>(self, out, "out"));
}

std::optional<PendingPull> take_pull(const TableSet&, Consumer& consumer, std::uint16_t kind) {
    persia::EntryHeader header;
    std::optional<PendingPull> pull;
    if (!consumer.peek(kind, header)) return pull;
    consumer.take([&](const persia::EntryHeader& of, const std::uint8_t* body) {
        pull.emplace(of.step, of.trainer, Body(body, of.body_bytes, of.num_arrays));
    });
    return pull;
}

// The number of rows sent, or nothing: the ring has no room for the record in one piece.
std::optional<std::uint64_t> answer(TableSet& self, PendingPull& pull, Producer& producer, std::uint16_t kind,
                                    std::uint64_t tag, const std::string& wire_name) {
    const persia::Wire wire = wire_named(wire_name);
    const std::vector<std::uint64_t> counts = self.row_counts(pull.counts, pull.wanted);
    BodyLayout layout(counts.size());
    std::uint64_t sent = 0;
    for (std::size_t g = 0; g < counts.size(); ++g) {
        const ArrayEntry entry = entry_of_rows(wire, counts[g], self.dims()[g]);
        layout.add(entry, kBytes[entry.dtype]);
        sent += counts[g];
    }
    std::uint8_t* const body = producer.ring.reserve({kind, pull.trainer, pull.step, tag}, layout);
    if (body == nullptr) return std::nullopt;
    std::vector<persia::Rows> rows;
    for (std::size_t g = 0; g < counts.size(); ++g) {
        rows.push_back({reinterpret_cast<std::byte*>(body + layout.offsets[g]), wire, counts[g]});
    }
    try {
        pull_into(self, pull, rows);
    } catch (...) {
        producer.ring.cancel();
        throw;
    }
    producer.ring.commit();
    return sent;
}

void lookup(const TableSet& self, const py::object& keys, const py::object& counts, const Groups& out) {
    const RecordKeys of = to_keys(self, keys, counts);
    const auto rows = to_rows<std::byte>(self, out, "out");
    const py::gil_scoped_release nogil;
    self.lookup(of, rows);
}

Counts push(TableSet& self, const std::vector<std::pair<PendingPull*, Groups>>& records, std::int64_t step,
            std::optional<bool> marked) {
    std::vector<persia::PushRecord> checked;
    for (const auto& [pull, gradients] : records) {
        const std::string prefix = "records[" + std::to_string(checked.size()) + "]: ";
        if (pull == nullptr) throw py::value_error(prefix + "expected a PendingPull, got None");
        checked.push_back({pull->of(), pull->slots,
                           to_rows<const std::byte>(self, gradients, prefix + "gradients"), pull->epochs});
    }
    const std::uint32_t at = check_step(step);
    const py::gil_scoped_release nogil;
    using Part = persia::PushPart;
    return to_tuple(self.push(checked, at, !marked ? Part::kAll : *marked ? Part::kMarked : Part::kOthers));
}

Counts push_next(TableSet& self, Consumer& consumer, const PendingPull& pull) {
    const std::uint32_t at = check_step(static_cast<std::int64_t>(pull.step));
    persia::PushCounts counts;
    consumer.take([&](const persia::EntryHeader& header, const std::uint8_t* body) {
        const Body of(body, header.body_bytes, header.num_arrays);
        const auto& dims = self.dims();
        if (of.parts.size() != dims.size()) {
            throw std::invalid_argument("a push has " + std::to_string(of.parts.size()) +
                                        " arrays, expected " + std::to_string(dims.size()) +
                                        ", one for each dim group");
        }
        std::vector<persia::PushRecord> records(1);
        records[0].of = pull.of();
        records[0].slots = pull.slots;
        records[0].epochs = pull.epochs;
        for (std::size_t g = 0; g < dims.size(); ++g) {
            records[0].gradients.push_back(rows_in(of.parts[g], dims[g]));
        }
        const py::gil_scoped_release nogil;
        counts = self.push(records, at);
    });
    return to_tuple(counts);
}

std::uint64_t evict(TableSet& self, std::int64_t step) {
    const std::uint32_t at = check_step(step);
    const py::gil_scoped_release nogil;
    return self.evict(at);
}

void set_lr(TableSet& self, const py::object& rates) {
    const auto tables = static_cast<py::ssize_t>(self.num_tables());
    const auto each = span_of<const double>(check_array(rates, "rates", {kFloat64}, {tables}));
    const py::gil_scoped_release nogil;
    self.set_lr(each);
}

constexpr const char* kTableSet =
    R"(Holds a server's tables for calls that concern a whole record: one call, with the GIL released.

Shapes: U keys of a record, T tables, G dim groups, U_g rows of a dim group, D_g its dim. A record has
`keys` uint64 [U], those of each table one after the other, `counts` uint32 [T] of them, and for each dim
group the rows of its tables [U_g, D_g] on the wire, see `encode_rows`. What `Table` says of a call holds for
each table's part. Threads may share the tables: each is locked while it is worked on, and no longer.
Raises: ValueError, before anything changes, for what `Table` refuses and for counts that don't fit.)";

constexpr const char* kInit = R"(Takes tables, None where the server has no buckets of one.

groups [T]: the dim group of each table. dims [G]: their dims. threads: that share the tables of a call with
enough keys; where tables have shards, each shard has its own thread. Results don't depend on them. ahead:
`look_ahead` will be called.)";

constexpr const char* kRowCounts = R"(Returns U_g for each dim group.

wanted: uint8 [U]; only keys that have a 1 count.)";

constexpr const char* kPull = R"(Writes the rows of a pull to `out`, and to the pull where they lie.

out: for each dim group the wanted rows. See `Table.pull`.)";

constexpr const char* kTakePull =
    R"(Takes the next record of a ring if it is a whole one of kind `kind`: keys, counts, perhaps wanted.

Else None.
Raises: RuntimeError for a record that is no pull.)";

constexpr const char* kAnswer =
    R"(Writes the rows of a pull to a ring, as a record that its consumer can see; returns how many rows.

None if there is no room now, or the record would travel in chunks; then nothing has changed. kind, tag: of
the record, whose step and trainer are the pull's.)";

constexpr const char* kLookup =
    "Writes the rows of `keys` to `out`; changes nothing. Rows never seen are zeros (evaluation).";

constexpr const char* kPush = R"(Makes one optimizer update per row with the gradients of all pulls of a step.

records: answered pulls, each with its gradients for each dim group, see `Table.push_step`. marked: True for
the rows that `mark_differing` has marked only, then False for the others; None for all. Returns how many rows
were (applied, evicted in flight, unadmitted, non-finite), which add up to all U.)";

constexpr const char* kPushNext =
    R"(Does what `push` does for one pull, whose gradients are the next record of a ring.

`RingConsumer.peek` has found it whole.
Raises: RuntimeError for a record that isn't there whole, or doesn't fit the pull.)";

constexpr const char* kPendingPull =
    R"(Holds a pull of one (step, trainer), until its gradients have been applied.

Shapes: keys uint64 [U], the server's part of the batch, in table order; counts uint32 [T], rows of each
table; wanted uint8 [U], 1 for rows that must travel, None if all must; slots uint32 [U], where each row lies,
and epochs uint32 [T], when each table was pulled from: empty until the pull is answered.)";

template <class T>
py::array numbers(const py::object& self, persia::Span<T> span) {
    using Element = std::remove_const_t<T>;
    return py::array_t<Element>(static_cast<py::ssize_t>(span.size()), span.data(), self);
}

void bind_pending_pull(py::module_& m) {
    const auto of = [](const py::object& self) -> PendingPull& { return py::cast<PendingPull&>(self); };
    py::class_<PendingPull>(m, "PendingPull", kPendingPull)
        .def(py::init<std::uint64_t, std::uint32_t, const py::object&, const py::object&, std::uint32_t,
                      const py::object&>(),
             py::arg("step"), py::arg("trainer"), py::arg("keys"), py::arg("counts"), py::arg("worker") = 0,
             py::arg("wanted") = py::none(), "Refers to the arrays, which must not change.")
        .def(
            "__len__", [](const PendingPull& self) { return self.keys.size(); }, "U.")
        .def_readonly("step", &PendingPull::step, "The step.")
        .def_readonly("trainer", &PendingPull::trainer, "The trainer's rank.")
        .def_readwrite("worker", &PendingPull::worker, "The worker_rank of who asked.")
        .def(
            "part",
            [](const PendingPull& self, const py::object& chosen) {
                const auto size = static_cast<py::ssize_t>(self.slots.size());  // 0 before it is answered
                const auto array = check_array(chosen, "chosen", {kUint8}, {size});
                return PendingPull(self, span_of<const std::uint8_t>(array));
            },
            py::arg("chosen"), "Returns the answered pull of those keys that have a 1 in uint8 [U].")
        .def_property_readonly(
            "keys", [of](const py::object& self) { return numbers(self, of(self).keys); }, "uint64 [U].")
        .def_property_readonly(
            "counts", [of](const py::object& self) { return numbers(self, of(self).counts); }, "uint32 [T].")
        .def_property_readonly(
            "wanted",
            [of](const py::object& self) -> py::object {
                if (of(self).wanted.empty()) return py::none();
                return numbers(self, of(self).wanted);
            },
            "uint8 [U], or None.")
        .def_property_readonly(
            "slots",
            [of](const py::object& self) {
                return numbers(self, persia::Span<std::uint32_t>(of(self).slots));
            },
            "uint32 [U].")
        .def_property_readonly(
            "epochs",
            [of](const py::object& self) {
                return numbers(self, persia::Span<std::uint32_t>(of(self).epochs));
            },
            "uint32 [T].");
}

}  // namespace

void bind_table_set(py::module_& m) {
    bind_pending_pull(m);
    py::class_<TableSet> set(m, "TableSet", kTableSet);
    set.def(py::init([](const std::vector<std::shared_ptr<LockedTable>>& tables,
                        const std::vector<std::uint32_t>& groups, const std::vector<std::uint32_t>& dims,
                        unsigned threads, bool ahead) {
                if (threads < 1) throw py::value_error("threads: expected at least 1, got 0");
                return std::make_unique<TableSet>(
                    std::vector<std::shared_ptr<persia::SharedTable>>(tables.begin(), tables.end()), groups,
                    dims, threads, ahead);
            }),
            py::arg("tables"), py::arg("groups"), py::arg("dims"), py::kw_only(), py::arg("threads") = 1,
            py::arg("ahead") = false, kInit)
        .def("row_counts", &row_counts, py::arg("counts"), py::arg("wanted") = py::none(), kRowCounts)
        .def("pull", &pull, py::arg("pull"), py::arg("out"), kPull)
        .def("take_pull", &take_pull, py::arg("ring"), py::arg("kind"), kTakePull)
        .def("answer", &answer, py::arg("pull"), py::arg("ring"), py::arg("kind"), py::arg("tag"),
             py::arg("wire"), kAnswer)
        .def("lookup", &lookup, py::arg("keys"), py::arg("counts"), py::arg("out"), kLookup)
        .def("push", &push, py::arg("records"), py::arg("step"), py::arg("marked") = py::none(), kPush)
        .def("push_next", &push_next, py::arg("ring"), py::arg("pull"), kPushNext)
        .def("evict", &evict, py::arg("step"), "Evicts from all tables after `step`; returns how many rows.")
        .def(
            "ask_disk",
            [](TableSet& self, const PendingPull& pull) {
                const py::gil_scoped_release nogil;
                self.ask_disk(pull.of());
            },
            py::arg("pull"), "Has the disk begin to read the rows that a pull will want from there.")
        .def("set_lr", &set_lr, py::arg("rates"),
             "Sets the learning rates, float64 [T], of the updates to come.");
    bind_ahead(set);
}
