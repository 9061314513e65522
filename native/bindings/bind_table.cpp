#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>

#include "arrays.h"
#include "bindings.h"
#include "persia/table.h"
#include "wire_arrays.h"

namespace {

using namespace persia_bindings;
using persia::Key;
using persia::Table;

// A table with the lock that lets Python threads share it: the GIL is released while it works.
struct LockedTable {
    explicit LockedTable(const persia::TableConfig& config) : table(config) {}

    template <class Work>
    auto run(Work&& work) {
        const py::gil_scoped_release nogil;
        const std::lock_guard<std::mutex> lock(mutex);
        return work(table);
    }

    py::ssize_t dim() const { return table.dim(); }

    Table table;
    std::mutex mutex;
};

using Counts = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;

Counts to_tuple(const persia::PushCounts& counts) {
    return {counts.applied, counts.evicted_in_flight, counts.unadmitted, counts.nonfinite};
}

std::uint32_t check_step(std::int64_t step) {
    if (step < 0 || step > Table::kMaxStep) {
        throw py::value_error("step: got " + std::to_string(step) + ", expected 0 to " +
                              std::to_string(Table::kMaxStep));
    }
    return static_cast<std::uint32_t>(step);
}

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

// Without a copy: the array keeps the vector.
template <class T>
py::array_t<T> to_array(std::vector<T> values, std::vector<py::ssize_t> shape) {
    auto* kept = new std::vector<T>(std::move(values));
    const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(std::move(shape), kept->data(), owner);
}

py::dict to_dict(const LockedTable& self, persia::ExportedRows exported) {
    const auto n = static_cast<py::ssize_t>(exported.keys.size());
    py::dict rows;
    rows["keys"] = to_array(std::move(exported.keys), {n});
    rows["rows"] = to_array(std::move(exported.rows), {n, self.dim()});
    rows["state"] = to_array(std::move(exported.state), {n, self.table.state_width()});
    rows["stamps"] = to_array(std::move(exported.stamps), {n});
    if (self.table.has_steps()) rows["steps"] = to_array(std::move(exported.steps), {n});
    return rows;
}

py::dict export_bucket(LockedTable& self, std::uint32_t bucket) {
    return to_dict(self, self.run([&](Table& table) { return table.export_bucket(bucket); }));
}

py::tuple snapshot_buckets(LockedTable& self, std::uint32_t first, std::uint32_t end, std::int64_t since) {
    const std::uint32_t after = check_step(since);
    if (first >= end) throw py::value_error("buckets: got an empty range");
    const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    persia::ExportedRows rows;
    std::vector<std::uint64_t> counts;
    std::vector<std::uint32_t> ages, counted;
    std::vector<std::uint8_t> sightings;
    {
        const py::gil_scoped_release nogil;
        for (std::uint32_t bucket = first; bucket < end; ++bucket) {
            persia::BucketState state;
            persia::ExportedRows part;
            {  // others may have the table after each bucket
                const std::lock_guard<std::mutex> lock(self.mutex);
                part = self.table.snapshot_bucket(bucket, after, state);
            }
            append(rows.keys, part.keys);
            append(rows.rows, part.rows);
            append(rows.state, part.state);
            append(rows.stamps, part.stamps);
            append(rows.steps, part.steps);
            append(sightings, state.sightings);
            counts.push_back(part.keys.size());
            ages.push_back(state.age);
            counted.push_back(state.counted);
        }
    }
    const auto b = static_cast<py::ssize_t>(counts.size());
    const auto cells = static_cast<py::ssize_t>(sightings.size()) / b;
    py::dict decides;
    decides["counts"] = to_array(std::move(counts), {b});
    decides["ages"] = to_array(std::move(ages), {b});
    decides["counted"] = to_array(std::move(counted), {b});
    decides["sightings"] = to_array(std::move(sightings), {b, cells});
    return py::make_tuple(to_dict(self, std::move(rows)), decides);
}

void restore_bucket(LockedTable& self, std::uint32_t bucket, std::uint32_t age, std::uint32_t counted,
                    const py::object& sightings) {
    const auto cells = span_of<const std::uint8_t>(check_array(sightings, "sightings", {kUint8}, {any('C')}));
    const persia::BucketState state{age, counted, {cells.begin(), cells.end()}};
    self.run([&](Table& table) { table.restore_bucket(bucket, state); });
}

void import_rows(LockedTable& self, const py::dict& rows) {
    const bool has_state = rows.contains("state") || rows.contains("steps");
    const bool has_steps = has_state && self.table.has_steps();
    std::vector<std::string> names{"keys", "rows"};
    if (has_state) names.emplace_back("state");
    names.emplace_back("stamps");
    if (has_steps) names.emplace_back("steps");
    std::string expected;
    for (const std::string& name : names) expected += (expected.empty() ? "" : ", ") + name;
    for (const auto& item : rows) {
        const std::string name = py::str(item.first);
        if (std::find(names.begin(), names.end(), name) == names.end()) {
            throw py::value_error("rows: got an array '" + name + "', expected " + expected);
        }
    }
    const auto get = [&](const char* name, const ElementType& type,
                         std::initializer_list<py::ssize_t> shape) {
        if (rows.contains(name)) return check_array(rows[name], name, {type}, shape);
        throw py::value_error("rows: no array '" + std::string(name) + "', expected " + expected);
    };
    const auto keys = span_of<const Key>(get("keys", kUint64, {any('n')}));
    const auto n = static_cast<py::ssize_t>(keys.size());
    persia::ImportedRows imported{};
    imported.keys = keys;
    imported.rows = span_of<const float>(get("rows", kFloat32, {n, self.dim()}));
    imported.stamps = span_of<const std::uint32_t>(get("stamps", kUint32, {n}));
    imported.has_state = has_state;
    if (has_state)
        imported.state = span_of<const float>(get("state", kFloat32, {n, self.table.state_width()}));
    if (has_steps) imported.steps = span_of<const std::uint32_t>(get("steps", kUint32, {n}));
    self.run([&](Table& table) { table.import_rows(imported); });
}

template <class Get>
auto property(Get get) {
    return [get](LockedTable& self) { return self.run([&](Table& table) { return get(table); }); };
}

}  // namespace

void bind_table(py::module_& m) {
    py::class_<LockedTable>(m, "Table", "One server's part of an embedding table; see _native.pyi.")
        .def(py::init<const persia::TableConfig&>(), py::arg("config"))
        .def("pull", &pull, py::arg("keys"), py::arg("step"), py::arg("out"), py::arg("slots"),
             py::arg("wanted") = py::none())
        .def("lookup", &lookup, py::arg("keys"), py::arg("out"))
        .def("push", &push, py::arg("keys"), py::arg("slots"), py::arg("grads"), py::arg("step"),
             py::arg("epoch"))
        .def("push_step", &push_step, py::arg("batches"), py::arg("step"))
        .def(
            "evict",
            [](LockedTable& self, std::int64_t step) {
                const std::uint32_t at = check_step(step);
                return self.run([&](Table& table) { return table.evict(at); });
            },
            py::arg("step"))
        .def(
            "set_lr", [](LockedTable& self, double lr) { self.run([&](Table& table) { table.set_lr(lr); }); },
            py::arg("lr"))
        .def("export_bucket", &export_bucket, py::arg("bucket"))
        .def("import_rows", &import_rows, py::arg("rows"))
        .def(
            "begin_snapshot",
            [](LockedTable& self, bool full) { self.run([&](Table& table) { table.begin_snapshot(full); }); },
            py::arg("full") = true)
        .def("snapshot_buckets", &snapshot_buckets, py::arg("first"), py::arg("end"), py::arg("since") = 0)
        .def(
            "rows_since",
            [](LockedTable& self, std::int64_t since) {
                const std::uint32_t after = check_step(since);
                const auto& config = self.table.config();
                const py::gil_scoped_release nogil;
                std::uint64_t count = 0;
                for (std::uint32_t b = config.first_bucket; b < config.end_bucket; ++b) {
                    const std::lock_guard<std::mutex> lock(self.mutex);
                    count += self.table.rows_since(b, after);
                }
                return count;
            },
            py::arg("since"))
        .def("end_snapshot", [](LockedTable& self) { self.run([](Table& table) { table.end_snapshot(); }); })
        .def("removed_keys",
             [](LockedTable& self) {
                 const auto keys = self.run([](Table& table) { return table.removed(); });
                 return to_array(keys, {static_cast<py::ssize_t>(keys.size())});
             })
        .def("restore_bucket", &restore_bucket, py::arg("bucket"), py::arg("age"), py::arg("counted"),
             py::arg("sightings"))
        .def(
            "set_next_step",
            [](LockedTable& self, std::int64_t step) {
                const std::uint32_t at = check_step(step);
                self.run([&](Table& table) { table.set_next_step(at); });
            },
            py::arg("step"))
        .def_property_readonly("sightings_per_bucket",
                               property([](Table& t) { return t.sightings_per_bucket(); }))
        .def_property_readonly("snapshot_bytes", property([](Table& t) { return t.snapshot_bytes(); }))
        .def_property_readonly("can_be_incremental",
                               property([](Table& t) { return t.can_be_incremental(); }))
        .def_property_readonly("dim", property([](Table& t) { return t.dim(); }))
        .def_property_readonly("first_bucket", property([](Table& t) { return t.config().first_bucket; }))
        .def_property_readonly("end_bucket", property([](Table& t) { return t.config().end_bucket; }))
        .def_property_readonly("state_width", property([](Table& t) { return t.state_width(); }))
        .def_property_readonly("row_bytes", property([](Table& t) { return t.row_bytes(); }))
        .def_property_readonly("num_rows", property([](Table& t) { return t.num_rows(); }))
        .def_property_readonly("created_rows", property([](Table& t) { return t.counts().created; }))
        .def_property_readonly("imported_rows", property([](Table& t) { return t.counts().imported; }))
        .def_property_readonly("evicted_rows", property([](Table& t) { return t.counts().evicted; }))
        .def_property_readonly("memory_bytes", property([](Table& t) { return t.memory_bytes(); }));
}
