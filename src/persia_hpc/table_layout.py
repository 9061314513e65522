"""The order of tables, groups and features that all roles agree on: a pure function of config and dataset
schema.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from .config import Config, TableConfig
from .errors import UserError
from .samples.schema import DatasetSchema, FeatureSchema
from .topology.sharding import bucket_bounds

# What a row costs beyond its embedding and optimizer state: its entry in the index (key, slot, stamp) at full
# load, and the epoch beside its state.
ROW_OVERHEAD_BYTES = 24
MIN_BUCKET_ROWS = 64  # with fewer, hashing fills buckets so unevenly that much capacity stays unused


def row_bytes(table: TableConfig) -> int:
    """Bytes of a row with its optimizer's state and what the table needs beside it."""
    dim, optimizer = table.dim, str(table.optimizer["name"])
    moments = {"sgd": 0, "rowwise_adagrad": 1, "adam": 2 * dim, "adamw": 2 * dim, "ftrl": 2 * dim}
    state = moments.get(optimizer, dim)
    counts = 4 if optimizer in ("adam", "adamw") else 0  # a row's own number of updates
    width = {"fp32": 4, "fp16": 2, "bf16": 2}
    return dim * width[table.storage] + state * width[table.state_dtype] + counts + ROW_OVERHEAD_BYTES


@dataclass(frozen=True)
class TableLayout:
    """One table as all ranks see it."""

    name: str
    config: TableConfig
    dim_group: int
    capacity_rows: int
    num_buckets: int

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def bucket_rows(self) -> int:
        """Capacity of one bucket in rows."""
        return self.capacity_rows // self.num_buckets


@dataclass(frozen=True)
class FeatureLayout:
    """One feature: which table it reads, how its rows become a model input."""

    name: str
    table: int
    pooling: str
    multi: bool  # several rows a sample: multi-hot, or an id hashed in several rounds
    max_length: int | None  # ids
    rounds: int  # rows that an id is the sum of


@dataclass(frozen=True)
class Layout:
    """Tables sorted by (dim, order of first use); a *dim group* is the run of tables with one dim."""

    tables: tuple[TableLayout, ...]
    features: tuple[FeatureLayout, ...]

    @cached_property
    def dim_groups(self) -> tuple[int, ...]:
        """Dim of each dim group."""
        return tuple(dict.fromkeys(t.dim for t in self.tables))

    @cached_property
    def dim_group_of_table(self) -> tuple[int, ...]:
        return tuple(t.dim_group for t in self.tables)

    def tables_of_dim_group(self, dim_group: int) -> range:
        inside = [i for i, t in enumerate(self.tables) if t.dim_group == dim_group]
        return range(inside[0], inside[-1] + 1)

    def bounds(self, num_servers: int) -> list[list[int]]:
        """[tables][num_servers + 1] bucket bounds of the servers."""
        return [bucket_bounds(t.num_buckets, num_servers) for t in self.tables]


def make_layout(config: Config, schema: DatasetSchema) -> Layout:
    """Orders the tables and features of a dataset under a configuration.

    Every feature of the dataset is used unless the configuration's `data.features` says otherwise; a feature
    without `table` has a table of its own name. Raises UserError for features or tables that don't fit.
    """
    available = {f.name: f for f in schema.features}
    unknown = [name for name in config.features if name not in available]
    if unknown:
        raise UserError(
            f"[features.{unknown[0]}] is configured, but the dataset has no such feature; it has: "
            f"{', '.join(available) or 'none'}"
        )
    default = config.table("default")
    names: dict[str, TableConfig] = {}
    users: dict[str, list[str]] = {}
    for name in available:
        feature = config.feature(name)
        table_name = feature.table or name
        if feature.table is not None and feature.table not in config.tables:
            raise UserError(
                f"[features.{name}] uses table {feature.table!r}, but there is no [tables.{feature.table}]; "
                f"add it or use one of: {', '.join(config.tables) or 'none'}"
            )
        names.setdefault(table_name, config.tables.get(table_name, default))
        users.setdefault(table_name, []).append(name)
    unused = [name for name in config.tables if name != "default" and name not in names]
    if unused:
        raise UserError(
            f"[tables.{unused[0]}] is configured, but no feature uses it; features of the dataset: "
            f"{', '.join(available)}"
        )
    ordered = sorted(names, key=lambda n: names[n].dim)  # stable: ties keep the order of first use
    dims = list(dict.fromkeys(names[n].dim for n in ordered))
    tables = []
    for name in ordered:
        table_config = names[name]
        each = row_bytes(table_config)
        rows = table_config.capacity_bytes // each
        _check_capacity(config, schema, name, users[name], rows, each)
        buckets = table_config.buckets
        while buckets > 1 and rows // buckets < MIN_BUCKET_ROWS:
            buckets //= 2
        tables.append(TableLayout(name, table_config, dims.index(table_config.dim), rows, buckets))
    index = {t.name: i for i, t in enumerate(tables)}
    features = []
    for name in available:
        feature = config.feature(name)
        table = index[feature.table or name]
        hashing = tables[table].config.hash
        rounds = hashing.rounds if hashing else 1
        multi = available[name].multi or rounds > 1
        features.append(FeatureLayout(name, table, feature.pooling, multi, feature.max_length, rounds))
    return Layout(tuple(tables), tuple(features))


def server_bytes(layout: Layout, num_servers: int) -> int:
    """What the tables of the server with the most will hold when full."""

    def full(table: TableLayout) -> int:
        hashing, rows = table.config.hash, table.capacity_rows
        most = rows if hashing is None else min(rows, hashing.rounds * hashing.size)
        return table.config.capacity_bytes * most // rows

    tables = list(zip(layout.tables, layout.bounds(num_servers), strict=True))
    return max(
        sum(full(table) * (b[s + 1] - b[s]) // table.num_buckets for table, b in tables)
        for s in range(num_servers)
    )


def _check_capacity(
    config: Config, schema: DatasetSchema, table: str, features: list[str], rows: int, row_bytes: int
) -> None:
    per_sample = sum(_ids_per_sample(schema.feature(f), config.feature(f).max_length) for f in features)
    need = math.ceil(config.data.batch_size * per_sample)
    hashing = config.tables.get(table, config.table("default")).hash
    if hashing is not None:
        need = hashing.rounds * min(need, hashing.size)
    if rows < need:
        raise UserError(
            f"table {table!r} has a capacity of {config_capacity(config, table)} = {rows} rows of "
            f"{row_bytes} bytes, but one step of {config.data.batch_size} samples may need {need}; give it "
            "at least "
            f"{need * row_bytes} bytes or lower data.batch_size"
        )


def _ids_per_sample(feature: FeatureSchema, max_length: int | None) -> float:
    """At most, or where there is no limit on average; 1 where not even that is known."""
    if not feature.multi:
        return 1
    return max_length or max(1.0, feature.mean_length or 1.0)


def config_capacity(config: Config, table: str) -> str:
    """The capacity as the user wrote it."""
    return str(config.tables.get(table, config.table("default")).capacity)
