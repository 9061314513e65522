#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "locked_table.h"
#include "wire_arrays.h"

namespace {

using namespace persia_bindings;
using persia::Key;
using persia::Table;

std::uint32_t pull(LockedTable& self, const py::object& keys, std::int64_t step, const py::object& out,
                   const py::object& slots, const py::object& wanted) {
    const auto in = span_of<const Key>(check_array(keys, "keys", {kUint64}, {any('U')}));
    const auto n = static_cast<py::ssize_t>(in.size());
    py::ssize_t num_rows = n;
    persia::Span<const std::uint8_t> chosen;
    if (!wanted.is_none()) {
        chosen = span_of<const std::uint8_t>(check_array(wanted, "wanted", {kUint8}, {n}));
        num_rows = n - std::count(chosen.begin(), chosen.end(), 0);
    }
    const persia::Rows rows = rows_of<std::byte>(out, "out", num_rows, self.dim());
    const auto to = span_of<std::uint32_t>(check_array(slots, "slots", {kUint32}, {n}, Access::kWrite));
    const std::uint32_t at = check_step(step);
    return self.run([&](Table& table) { return table.pull(in, at, rows, to, chosen); });
}

void lookup(LockedTable& self, const py::object& keys, const py::object& out) {
    const auto in = span_of<const Key>(check_array(keys, "keys", {kUint64}, {any('U')}));
    const persia::Rows rows = rows_of<std::byte>(out, "out", static_cast<py::ssize_t>(in.size()), self.dim());
    self.run([&](Table& table) { table.lookup(in, rows); });
}

using PyBatch =
    std::tuple<py::object, py::object, py::object, std::uint32_t>;  // keys, slots, gradients, epoch

persia::PushBatch to_batch(const LockedTable& self, const PyBatch& batch, const std::string& prefix) {
    const auto& [keys, slots, gradients, epoch] = batch;
    const auto in = span_of<const Key>(check_array(keys, prefix + "keys", {kUint64}, {any('U')}));
    const auto n = static_cast<py::ssize_t>(in.size());
    const auto given = span_of<const std::uint32_t>(check_array(slots, prefix + "slots", {kUint32}, {n}));
    return {in, given, rows_of<const std::byte>(gradients, prefix + "grads", n, self.dim()), epoch};
}

Counts push(LockedTable& self, const py::object& keys, const py::object& slots, const py::object& grads,
            std::int64_t step, std::uint32_t epoch) {
    const persia::PushBatch batch = to_batch(self, {keys, slots, grads, epoch}, "");
    const std::uint32_t at = check_step(step);
    return to_tuple(self.run([&](Table& table) { return table.push(batch, at); }));
}

Counts push_step(LockedTable& self, const std::vector<PyBatch>& batches, std::int64_t step) {
    std::vector<persia::PushBatch> checked;
    for (std::size_t i = 0; i < batches.size(); ++i) {
        checked.push_back(to_batch(self, batches[i], "batches[" + std::to_string(i) + "]: "));
    }
    const std::uint32_t at = check_step(step);
    return to_tuple(self.run([&](Table& table) { return table.push_step(checked, at); }));
}

constexpr const char* kTable =
    R"(Holds one server's shard of an embedding table: the rows, with optimizer state, of a range of buckets.

Shapes: U unique keys of a call, D dim, S state width. `out` and `grads` are rows on the wire, see
`encode_rows`. The keys of a call must be unique and ordered by bucket (ascending keys are). Threads may
share a table: calls wait for each other, with the GIL released. A slot is where a row lies, an epoch
tells at which point of the table's life: `push` wants both back from `pull` and so knows whether the row
is still the one that was pulled.
Raises: ValueError, before anything changes, for keys of another bucket range or out of order, for an
unknown optimizer or option, and for values out of range.)";

constexpr const char* kPull = R"(Writes the rows of `keys` [U] to `out` [U, D] and returns the epoch.

Creates unseen rows and notes that `step` uses them. Fills `slots` uint32 [U]; `push` wants them and the
epoch back. Keys that are not admitted give zeros. Capacity may be exceeded until the next `evict`.
wanted: uint8 [U]; only the rows of keys that have a 1 are written, without gaps; nothing else changes.)";

constexpr const char* kPush =
    R"(Makes one optimizer update per row, with gradients [U, D] for what `pull` gave at `step`.

Returns how many rows were (applied, evicted in flight, unadmitted, non-finite), which add up to U. A row
that was evicted since the pull is left alone even if it was created again; a gradient with an infinite or
NaN element is skipped.)";

constexpr const char* kPushStep =
    R"(Makes one optimizer update per row with all batches (keys, slots, gradients, epoch) of a step.

Gradients of a row are summed in the order of the batches, in fp32. Returns counts as `push` does, of
(batch, row): one batch's non-finite row is left out of the sum; where finite gradients sum to something
non-finite the row is skipped and all count as such.)";

constexpr const char* kEvict =
    R"(Removes, after `step` is applied, rows that are too many or too old; returns how many.

Rows over their time to live go, and of each bucket over its capacity those with the least (last step
used, key), or (times used, key) with "lfu". Sightings are counted. To be called between steps only, so
that it doesn't depend on the order of pulls of one step. With a disk tier, rows of a bucket over its capacity
go there and are not counted, and those that a step after `step` has pulled stay. Where the disk takes no more, see
`TableConfig.full_disk_evicts`.)";

constexpr const char* kSetNextStep =
    "Sets the step after the last `evict`: look-ups don't see rows whose time to live is over by then.";

}  // namespace

void bind_table(py::module_& m) {
    // A person reads it: what failed on which disk is known only here.
    py::register_exception<persia::DiskError>(m, "DiskError",
                                              py::module_::import("persia_hpc.errors").attr("PersiaError"));
    m.attr("DiskError").attr("__doc__") =
        "Is raised if the disk of a table fails, or is full when rows are imported; its table is of no use "
        "then.";
    TableClass table(m, "Table", kTable);
    table.def(py::init<const persia::TableConfig&>(), py::arg("config"), "Makes an empty table.")
        .def("pull", &pull, py::arg("keys"), py::arg("step"), py::arg("out"), py::arg("slots"),
             py::arg("wanted") = py::none(), kPull)
        .def("lookup", &lookup, py::arg("keys"), py::arg("out"),
             "Writes the rows of `keys` [U] to `out` [U, D], zeros for unseen; changes nothing (evaluation).")
        .def("push", &push, py::arg("keys"), py::arg("slots"), py::arg("grads"), py::arg("step"),
             py::arg("epoch"), kPush)
        .def("push_step", &push_step, py::arg("batches"), py::arg("step"), kPushStep)
        .def(
            "evict",
            [](LockedTable& self, std::int64_t step) {
                const std::uint32_t at = check_step(step);
                return self.run([&](Table& t) { return t.evict(at); });
            },
            py::arg("step"), kEvict)
        .def(
            "set_lr", [](LockedTable& self, double lr) { self.run([&](Table& t) { t.set_lr(lr); }); },
            py::arg("lr"), "Sets the learning rate of the updates to come.")
        .def(
            "set_next_step",
            [](LockedTable& self, std::int64_t step) {
                const std::uint32_t at = check_step(step);
                self.run([&](Table& t) { t.set_next_step(at); });
            },
            py::arg("step"), kSetNextStep);
    bind_table_rows(table);
    const auto read = [&](const char* name, auto get, const char* text) {
        table.def_property_readonly(
            name, [get](LockedTable& self) { return self.run([&](Table& t) { return get(t); }); }, text);
    };
    read("dim", [](Table& t) { return t.dim(); }, "D.");
    read("first_bucket", [](Table& t) { return t.config().first_bucket; }, "The first bucket of the shard.");
    read("end_bucket", [](Table& t) { return t.config().end_bucket; }, "The bucket behind the last one.");
    read(
        "state_width", [](Table& t) { return t.state_width(); },
        "S: floats of optimizer state per row, without Adam's count of updates.");
    read(
        "row_bytes", [](Table& t) { return t.row_bytes(); },
        "Bytes of a row's weights and optimizer state (with Adam's count of updates), with padding.");
    read("has_steps", [](Table& t) { return t.has_steps(); }, "Whether rows count their updates.");
    read(
        "record_bytes", [](Table& t) { return t.record_bytes(); },
        "Bytes of a record that `copy_buckets` gives and `adopt_rows` takes; 0 if there are none.");
    read(
        "num_rows", [](Table& t) { return t.num_rows(); },
        "Rows now: created_rows + imported_rows - evicted_rows.");
    read("created_rows", [](Table& t) { return t.counts().created; }, "Rows created by pulls so far.");
    read("imported_rows", [](Table& t) { return t.counts().imported; }, "Rows added by imports so far.");
    read("evicted_rows", [](Table& t) { return t.counts().evicted; }, "Rows evicted so far.");
    read("has_disk", [](Table& t) { return !t.config().disk_folder.empty(); }, "Whether it has a disk tier.");
    read("cold_rows", [](Table& t) { return t.cold_rows(); }, "Rows that are on disk now, of `num_rows`.");
    read(
        "to_disk_rows", [](Table& t) { return t.counts().to_disk; },
        "Rows that went to disk so far; a row may go often.");
    read(
        "from_disk_rows", [](Table& t) { return t.counts().from_disk; },
        "Rows that came back so far; look-ups bring none.");
    read(
        "disk_full_rows", [](Table& t) { return t.counts().disk_full; },
        "Rows that were evicted because the disk took no more, of `evicted_rows`.");
    read(
        "disk_problem", [](Table& t) { return t.disk_problem(); },
        "Why the disk took no more rows when it first didn't; empty if it always did.");
    read("disk_bytes", [](Table& t) { return t.disk_bytes(); }, "Bytes that the rows' file has in use now.");
    read(
        "memory_bytes", [](Table& t) { return t.memory_bytes(); },
        "All memory that the table holds: rows, indexes, free space, working memory.");
    read(
        "sightings_per_bucket", [](Table& t) { return t.sightings_per_bucket(); },
        "C: counts of sightings per bucket; 0 where none are counted.");
    read(
        "snapshot_bytes", [](Table& t) { return t.snapshot_bytes(); },
        "Bytes that a snapshot keeps aside now.");
    read(
        "can_be_incremental", [](Table& t) { return t.can_be_incremental(); },
        "Whether the next snapshot may hold only the changes since the last full one.");
}
