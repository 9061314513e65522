// What each binding file adds to the extension module.
#pragma once

#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_codec(py::module_& m);
void bind_criteo_lines(py::module_& m);
void bind_dedup(py::module_& m);
void bind_limits(py::module_& m);
void bind_dlrm(py::module_& m);
void bind_gather(py::module_& m);
void bind_id_counter(py::module_& m);
void bind_node_sum(py::module_& m);
void bind_pool(py::module_& m);
void bind_pool_batch(py::module_& m);
void bind_ranking(py::module_& m);
void bind_recent_rows(py::module_& m);
void bind_ring(py::module_& m);
void bind_served(py::module_& m);
void bind_shares(py::module_& m);
void bind_silu_attention(py::module_& m);
void bind_table(py::module_& m);
void bind_table_config(py::module_& m);
void bind_table_set(py::module_& m);
