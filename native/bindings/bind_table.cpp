#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <tuple>

#include "bindings.h"
#include "persia/table.h"
#include "table_arrays.h"

namespace {

using namespace persia_bindings;
using persia::Half;
using persia::Key;

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

    persia::Table table;
    std::mutex mutex;
};

using Counts = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t>;

Counts to_tuple(const persia::PushCounts& counts) {
    return {counts.applied, counts.evicted_in_flight, counts.nonfinite};
}

std::uint32_t check_step(std::int64_t step) {
    if (step < 0 || step > persia::Table::kMaxStep) {
        throw py::value_error("step: got " + std::to_string(step) + ", expected 0 to " +
                              std::to_string(persia::Table::kMaxStep));
    }
    return static_cast<std::uint32_t>(step);
}

void pull(LockedTable& self, const py::array& keys, std::int64_t step, const py::array& out,
          const py::array& slots) {
    const py::ssize_t n = check_keys(keys, "keys");
    check_array(out, "out", {kFloat32, kFloat16}, {n, self.dim()}, Access::kWrite);
    check_array(slots, "slots", {kUint32}, {n}, Access::kWrite);
    const std::uint32_t at = check_step(step);
    const bool half = is_half(out);
    const auto* in = data_of<const Key>(keys);
    auto* to = data_of<std::uint32_t>(slots);
    void* rows = data_of<void>(out);
    self.run([&](persia::Table& table) {
        const auto count = static_cast<std::size_t>(n);
        if (half) {
            table.pull(in, count, at, static_cast<Half*>(rows), to);
        } else {
            table.pull(in, count, at, static_cast<float*>(rows), to);
        }
    });
}

void lookup(LockedTable& self, const py::array& keys, const py::array& out) {
    const py::ssize_t n = check_keys(keys, "keys");
    check_array(out, "out", {kFloat32, kFloat16}, {n, self.dim()}, Access::kWrite);
    const bool half = is_half(out);
    const auto* in = data_of<const Key>(keys);
    void* rows = data_of<void>(out);
    self.run([&](persia::Table& table) {
        const auto count = static_cast<std::size_t>(n);
        if (half) {
            table.lookup(in, count, static_cast<Half*>(rows));
        } else {
            table.lookup(in, count, static_cast<float*>(rows));
        }
    });
}

using PyBatch = std::tuple<py::array, py::array, py::array>;  // keys, slots, gradients

template <class T>
persia::PushBatch<T> to_batch(const PyBatch& batch) {
    const auto& [keys, slots, gradients] = batch;
    return {data_of<const Key>(keys), data_of<const std::uint32_t>(slots), data_of<const T>(gradients),
            static_cast<std::size_t>(keys.shape(0))};
}

void check_batch(const LockedTable& self, const PyBatch& batch, const std::string& prefix) {
    const auto& [keys, slots, gradients] = batch;
    const py::ssize_t n = check_keys(keys, prefix + "keys");
    check_array(slots, prefix + "slots", {kUint32}, {n}, Access::kRead);
    check_array(gradients, prefix + "grads", {kFloat32, kFloat16}, {n, self.dim()}, Access::kRead);
}

Counts push(LockedTable& self, const py::array& keys, const py::array& slots, const py::array& grads,
            std::int64_t step) {
    const PyBatch batch{keys, slots, grads};
    check_batch(self, batch, "");
    const std::uint32_t at = check_step(step);
    const bool half = is_half(grads);
    const auto as_half = to_batch<Half>(batch);
    const auto as_float = to_batch<float>(batch);
    return to_tuple(self.run(
        [&](persia::Table& table) { return half ? table.push(as_half, at) : table.push(as_float, at); }));
}

Counts push_step(LockedTable& self, const std::vector<PyBatch>& batches, std::int64_t step) {
    std::vector<persia::PushBatch<Half>> as_half;
    std::vector<persia::PushBatch<float>> as_float;
    for (std::size_t i = 0; i < batches.size(); ++i) {
        check_batch(self, batches[i], "batches[" + std::to_string(i) + "]: ");
        if (is_half(std::get<2>(batches[i]))) {
            as_half.push_back(to_batch<Half>(batches[i]));
        } else {
            as_float.push_back(to_batch<float>(batches[i]));
        }
    }
    if (!as_half.empty() && !as_float.empty()) {
        throw py::value_error("batches: expected gradients of one dtype, got float16 and float32");
    }
    const std::uint32_t at = check_step(step);
    return to_tuple(self.run([&](persia::Table& table) {
        return as_half.empty() ? table.push_step(as_float, at) : table.push_step(as_half, at);
    }));
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values, std::vector<py::ssize_t> shape) {
    py::array_t<T> array(std::move(shape));
    std::copy(values.begin(), values.end(), array.mutable_data());
    return array;
}

py::dict export_bucket(LockedTable& self, std::uint32_t bucket) {
    const auto exported = self.run([&](persia::Table& table) { return table.export_bucket(bucket); });
    const auto n = static_cast<py::ssize_t>(exported.keys.size());
    py::dict rows;
    rows["keys"] = to_array(exported.keys, {n});
    rows["rows"] = to_array(exported.rows, {n, self.dim()});
    rows["state"] = to_array(exported.state, {n, self.table.state_width()});
    rows["stamps"] = to_array(exported.stamps, {n});
    if (self.table.has_steps()) rows["steps"] = to_array(exported.steps, {n});
    return rows;
}

void import_rows(LockedTable& self, const py::dict& rows) {
    const bool has_steps = self.table.has_steps();
    std::vector<std::string> names{"keys", "rows", "state", "stamps"};
    if (has_steps) names.emplace_back("steps");
    std::string expected;
    for (const std::string& name : names) expected += (expected.empty() ? "" : ", ") + name;
    for (const auto& item : rows) {
        const std::string name = py::str(item.first);
        if (std::find(names.begin(), names.end(), name) == names.end()) {
            throw py::value_error("rows: got an array '" + name + "', expected " + expected);
        }
    }
    const auto get = [&](const char* name) {
        if (!rows.contains(name) || !py::isinstance<py::array>(rows[name])) {
            throw py::value_error("rows: no array '" + std::string(name) + "', expected " + expected);
        }
        return py::reinterpret_borrow<py::array>(rows[name]);
    };
    const py::array keys = get("keys"), values = get("rows"), state = get("state"), stamps = get("stamps");
    const py::ssize_t n = check_keys(keys, "keys");
    check_array(values, "rows", {kFloat32}, {n, self.dim()}, Access::kRead);
    check_array(state, "state", {kFloat32}, {n, self.table.state_width()}, Access::kRead);
    check_array(stamps, "stamps", {kUint32}, {n}, Access::kRead);
    py::array steps;
    if (has_steps) {
        steps = get("steps");
        check_array(steps, "steps", {kUint32}, {n}, Access::kRead);
    }
    const auto* key_data = data_of<const Key>(keys);
    const auto* row_data = data_of<const float>(values);
    const auto* state_data = data_of<const float>(state);
    const auto* stamp_data = data_of<const std::uint32_t>(stamps);
    const auto* step_data = has_steps ? data_of<const std::uint32_t>(steps) : nullptr;
    self.run([&](persia::Table& table) {
        table.import_rows(key_data, static_cast<std::size_t>(n), row_data, state_data, stamp_data, step_data);
    });
}

std::unique_ptr<LockedTable> make_table(std::uint32_t dim, std::string optimizer,
                                        std::map<std::string, double> options, std::string init,
                                        double init_a, double init_b, std::uint64_t seed,
                                        std::uint32_t num_buckets, std::uint32_t first_bucket,
                                        std::uint32_t end_bucket, std::uint32_t bucket_capacity) {
    persia::TableConfig config;
    config.dim = dim;
    config.optimizer = std::move(optimizer);
    config.options = std::move(options);
    config.init = std::move(init);
    config.init_a = init_a;
    config.init_b = init_b;
    config.seed = seed;
    config.num_buckets = num_buckets;
    config.first_bucket = first_bucket;
    config.end_bucket = end_bucket;
    config.bucket_capacity = bucket_capacity;
    return std::make_unique<LockedTable>(config);
}

template <class Get>
auto property(Get get) {
    return
        [get](LockedTable& self) { return self.run([&](persia::Table& table) { return (table.*get)(); }); };
}

}  // namespace

void bind_table(py::module_& m) {
    using persia::Table;
    py::class_<LockedTable>(m, "Table", "One server's shard of an embedding table; see _native.pyi.")
        .def(py::init(&make_table), py::kw_only(), py::arg("dim"), py::arg("optimizer"), py::arg("options"),
             py::arg("init"), py::arg("init_a"), py::arg("init_b"), py::arg("seed"), py::arg("num_buckets"),
             py::arg("first_bucket"), py::arg("end_bucket"), py::arg("bucket_capacity"))
        .def("pull", &pull, py::arg("keys"), py::arg("step"), py::arg("out"), py::arg("slots"))
        .def("lookup", &lookup, py::arg("keys"), py::arg("out"))
        .def("push", &push, py::arg("keys"), py::arg("slots"), py::arg("grads"), py::arg("step"))
        .def("push_step", &push_step, py::arg("batches"), py::arg("step"))
        .def("evict", [](LockedTable& self) { return self.run([](Table& table) { return table.evict(); }); })
        .def(
            "set_lr", [](LockedTable& self, double lr) { self.run([&](Table& table) { table.set_lr(lr); }); },
            py::arg("lr"))
        .def("export_bucket", &export_bucket, py::arg("bucket"))
        .def("import_rows", &import_rows, py::arg("rows"))
        .def_property_readonly("dim", property(&Table::dim))
        .def_property_readonly("first_bucket", property(&Table::first_bucket))
        .def_property_readonly("end_bucket", property(&Table::end_bucket))
        .def_property_readonly("state_width", property(&Table::state_width))
        .def_property_readonly("row_bytes", property(&Table::row_bytes))
        .def_property_readonly("num_rows", property(&Table::num_rows))
        .def_property_readonly("created_rows", property(&Table::created_rows))
        .def_property_readonly("imported_rows", property(&Table::imported_rows))
        .def_property_readonly("evicted_rows", property(&Table::evicted_rows))
        .def_property_readonly("memory_bytes", property(&Table::memory_bytes));
}
