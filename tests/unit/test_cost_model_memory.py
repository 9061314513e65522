"""What the cost model says of tables' memory is what they hold."""

from __future__ import annotations

import numpy as np
import pytest

from persia_hpc._native import PendingPull, mix
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.table_layout import make_layout, server_bytes
from tests.unit.test_cost_model import SCHEMA, config_of


@pytest.mark.parametrize("servers", [1, 3])
def test_the_last_use_of_rows_is_counted_where_servers_note_it(servers: int) -> None:
    """In `fresh`, of tables with lfu; as much as they then hold more than in `sync`."""
    held, planned = {}, {}
    for mode in ("sync", "fresh"):
        tables = {"default": {"dim": 16, "capacity": "2 MiB"}}
        tables["wide"] = {**tables["default"], "eviction": "lfu"}
        config = config_of(mode=mode, tables=tables)
        layout = make_layout(config, SCHEMA)
        engines = [
            ParameterServer(config, layout, server_rank=s, num_servers=servers) for s in range(servers)
        ]
        for engine in engines:
            engine.clock.begin_segment(1, 1)
            keys = []
            for table, owned in zip(layout.tables, engine.buckets, strict=True):
                every = np.sort(mix(np.arange(table.bucket_rows * table.num_buckets, dtype=np.uint64)))
                bucket = every >> np.uint64(65 - table.num_buckets.bit_length())
                keys.append(every[(bucket >= owned.start) & (bucket < owned.stop)])
            counts = np.array([len(k) for k in keys], np.uint32)
            engine.submit_pull(PendingPull(1, 0, np.concatenate(keys), counts))
            for pull in engine.ready_pulls():
                engine.answer(pull, [np.empty(shape, np.float32) for shape in engine.row_shapes(counts)])
        held[mode] = max(sum(t.memory_bytes for t in e.tables if t is not None) for e in engines)
        planned[mode] = server_bytes(config, layout, servers)
    assert planned["fresh"] - planned["sync"] == pytest.approx(held["fresh"] - held["sync"], rel=0.1)
    assert held["fresh"] > held["sync"]
