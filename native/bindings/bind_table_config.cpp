#include <pybind11/stl.h>

#include <functional>
#include <string>

#include "bindings.h"
#include "persia/table_config.h"
#include "persia/table_memory.h"

namespace {

using persia::TableConfig;

// The one list of a configuration's names: visit(name, get, required) for each, with get(config) its field.
template <class Visit>
void each_field(const Visit& visit) {
    visit("dim", &TableConfig::dim, true);
    visit("optimizer", &TableConfig::optimizer, true);
    visit("options", &TableConfig::options, true);
    visit("init", &TableConfig::init, true);
    visit("init_a", &TableConfig::init_a, true);
    visit("init_b", &TableConfig::init_b, true);
    visit("seed", &TableConfig::seed, true);
    visit("num_buckets", &TableConfig::num_buckets, true);
    visit("first_bucket", &TableConfig::first_bucket, true);
    visit("end_bucket", &TableConfig::end_bucket, true);
    visit("bucket_capacity", &TableConfig::bucket_capacity, true);
    visit("value_bound", &TableConfig::value_bound, false);
    visit("clip_norm", &TableConfig::clip_norm, false);
    visit("storage", &TableConfig::storage, false);
    visit("state_storage", &TableConfig::state_storage, false);
    visit("eviction", &TableConfig::eviction, false);
    visit("ttl", &TableConfig::ttl, false);
    visit("admit_after", [](auto& config) -> auto& { return config.admission.after; }, false);
    visit("admit_probability", [](auto& config) -> auto& { return config.admission.probability; }, false);
    visit("disk_folder", &TableConfig::disk_folder, false);
    visit("disk_bytes", &TableConfig::disk_bytes, false);
    visit("full_disk_evicts", &TableConfig::full_disk_evicts, false);
    visit("threads", &TableConfig::threads, false);
}

TableConfig from_arguments(const py::kwargs& arguments) {
    TableConfig config;
    std::string names;
    std::size_t used = 0;
    each_field([&](const char* name, const auto& get, bool required) {
        names += (names.empty() ? "" : ", ") + std::string(name);
        if (!arguments.contains(name)) {
            if (required) throw py::value_error("a table's configuration needs '" + std::string(name) + "'");
            return;
        }
        ++used;
        auto& field = std::invoke(get, config);
        const py::object value = arguments[name];
        try {
            field = value.cast<std::decay_t<decltype(field)>>();
        } catch (const py::cast_error&) {
            throw py::value_error(std::string(name) + ": got " + std::string(py::repr(value)) +
                                  ", expected a value like " + std::string(py::repr(py::cast(field))));
        }
    });
    if (used == arguments.size()) return config;
    for (const auto& item : arguments) {
        bool known = false;
        each_field(
            [&](const char* name, const auto&, bool) { known = known || item.first.equal(py::str(name)); });
        if (!known) {
            throw py::value_error("a table's configuration has no '" + std::string(py::str(item.first)) +
                                  "'; it has " + names);
        }
    }
    return config;
}

constexpr const char* kTableConfig =
    R"(Holds what a table is made with: buckets [first_bucket, end_bucket) of `num_buckets` (a power of two).

optimizer: "sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "adamw" or "ftrl".
options: `lr` must be there; `eps` (1e-10 for adagrad, else 1e-8), `initial_accumulator_value` (0; 0.1 for
  ftrl), `beta1`, `beta2` (0.9, 0.999), `momentum` (0.9), `l1`, `l2` (0, ftrl), `weight_decay` (0; all but
  ftrl; with adamw 0.01 and decoupled).
init: "uniform" in [init_a, init_b) or "normal" of mean init_a and standard deviation init_b; the first
  values of a row are a function of (seed, key) alone.
bucket_capacity: rows per bucket, see `Table.evict`.
value_bound: weights are clipped to it after each update (0: not).
clip_norm: a gradient of a row is shortened to this L2 norm before its update (0: not).
storage, state_storage: "fp32", "fp16" or "bf16"; 16 bits are rounded stochastically by (seed, key, step).
eviction: "lru" or "lfu".
ttl: steps after which an unused row is gone (0: never; lru only).
admit_after: how many steps must see a key before it gets a row, by a counting sketch.
admit_probability: the share of keys, by their hash, that may get a row.
disk_folder: rows over the capacity go to a file there, which nobody sees and no crash leaves behind, instead of
  being evicted, and come back when they are pulled ("": none).
disk_bytes: that the file may have.
full_disk_evicts: rows that a full disk, or one that can't be written, doesn't take are evicted (lru only); else
  they stay in memory, beyond the capacity. Either way `Table.disk_problem` says why.
threads: each works on a part of the buckets; results don't depend on their number.

Each argument is an attribute that can be read.
Raises: ValueError for an unknown or missing name and for a value of another type. `Table` raises it for
values out of range and for those that contradict each other.)";

constexpr const char* kRowBytes = R"(Returns the bytes of a row of `dim`; names are those of `TableConfig`.

Raises: ValueError for an unknown optimizer or format.)";

constexpr const char* kTableBytes =
    R"(Predicts the resident memory of a table that holds `rows` rows, without making it.

Good to a few percent for rows hashed evenly to the buckets; 0 rows: an empty table. With `step_rows` rows
in a step it includes working memory of `push_step` and, in a full table, room for new rows that come
before others are evicted. Not
included: what a snapshot keeps aside, and with adam and adamw 16 bytes for each update of the row that
had most (at most 1 MiB for each thread).
Raises: ValueError as `Table` does.)";

}  // namespace

void bind_table_config(py::module_& m) {
    py::class_<TableConfig> config(m, "TableConfig", kTableConfig);
    config.def(py::init(&from_arguments), "Takes each value by its name.");
    each_field([&](const char* name, const auto& get, bool) {
        config.def_property_readonly(name, [get](const TableConfig& self) { return std::invoke(get, self); });
    });
    py::class_<persia::RowBytes>(m, "RowBytes", "Holds the bytes of a row, by what they are for.")
        .def_readonly("weights", &persia::RowBytes::weights, "Bytes of the weights as stored.")
        .def_readonly("state", &persia::RowBytes::state,
                      "Bytes of the optimizer's state with the row's count of updates, without padding.")
        .def_readonly("beside", &persia::RowBytes::beside,
                      "Bytes of the entry in a full index and of the epoch; the same for all tables.");
    m.def(
        "row_bytes",
        [](const std::string& optimizer, std::uint32_t dim, const std::string& storage,
           const std::string& state_storage) {
            return persia::row_bytes(optimizer, dim, persia::storage_of(storage),
                                     persia::storage_of(state_storage));
        },
        py::arg("optimizer"), py::arg("dim"), py::kw_only(), py::arg("storage") = "fp32",
        py::arg("state_storage") = "fp32", kRowBytes);
    m.def("table_bytes", &persia::table_bytes, py::arg("config"), py::arg("rows"), py::kw_only(),
          py::arg("step_rows") = 0, kTableBytes);
}
