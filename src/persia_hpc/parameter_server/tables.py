"""Makes a server's part of a table as the configuration says."""

from __future__ import annotations

import hashlib

from persia_hpc._native import Table, TableConfig
from persia_hpc.config import Config
from persia_hpc.table_layout import TableLayout


def make_table(config: Config, table: TableLayout, first_bucket: int, end_bucket: int) -> Table:
    """Returns an empty table for the buckets [first_bucket, end_bucket)."""
    return Table(native_config(config, table, first_bucket, end_bucket))


def native_config(config: Config, table: TableLayout, first_bucket: int, end_bucket: int) -> TableConfig:
    """Translates a table's configuration for the native table."""
    options = dict(table.config.optimizer)
    init = table.config.init
    names = ("low", "high") if init["name"] == "uniform" else ("mean", "std")
    return TableConfig(
        dim=table.dim,
        optimizer=str(options.pop("name")),
        options={k: float(v) for k, v in options.items()},
        init=str(init["name"]),
        init_a=float(init[names[0]]),
        init_b=float(init[names[1]]),
        seed=_table_seed(config.seed, table.name),
        num_buckets=table.num_buckets,
        first_bucket=first_bucket,
        end_bucket=end_bucket,
        bucket_capacity=max(1, table.bucket_rows),
        value_bound=table.config.value_bound,
        storage=table.config.storage,
        state_storage=table.config.state_dtype,
        eviction=table.config.eviction,
        ttl=table.config.ttl,
        admit_after=int(table.config.admission.get("after", 1)),
        admit_probability=float(table.config.admission.get("probability", 1.0)),
        threads=config.server_threads,
    )


def _table_seed(seed: int, table: str) -> int:
    """Returns a seed that depends on the table's name.

    So neither other tables nor their order change the initial values of a table's rows.
    """
    digest = hashlib.blake2b(f"{seed}:{table}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
