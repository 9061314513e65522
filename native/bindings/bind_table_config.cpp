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
    visit("storage", &TableConfig::storage, false);
    visit("state_storage", &TableConfig::state_storage, false);
    visit("eviction", &TableConfig::eviction, false);
    visit("ttl", &TableConfig::ttl, false);
    visit("admit_after", [](auto& config) -> auto& { return config.admission.after; }, false);
    visit("admit_probability", [](auto& config) -> auto& { return config.admission.probability; }, false);
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

}  // namespace

void bind_table_config(py::module_& m) {
    py::class_<TableConfig> config(m, "TableConfig");
    config.def(py::init(&from_arguments));
    each_field([&](const char* name, const auto& get, bool) {
        config.def_property_readonly(name, [get](const TableConfig& self) { return std::invoke(get, self); });
    });
    py::class_<persia::RowBytes>(m, "RowBytes")
        .def_readonly("weights", &persia::RowBytes::weights)
        .def_readonly("state", &persia::RowBytes::state)
        .def_readonly("beside", &persia::RowBytes::beside);
    m.def(
        "row_bytes",
        [](const std::string& optimizer, std::uint32_t dim, const std::string& storage,
           const std::string& state_storage) {
            return persia::row_bytes(optimizer, dim, persia::storage_of(storage),
                                     persia::storage_of(state_storage));
        },
        py::arg("optimizer"), py::arg("dim"), py::kw_only(), py::arg("storage") = "fp32",
        py::arg("state_storage") = "fp32");
    m.def("table_bytes", &persia::table_bytes, py::arg("config"), py::arg("rows"), py::kw_only(),
          py::arg("step_rows") = 0);
}
