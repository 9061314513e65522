"""Computes the order of tables, dim groups and features that all roles agree on, and how large tables are.

Everything here is a pure function of the configuration and the data set's schema.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from . import _native
from .config import Config, TableConfig
from .config.learning_rate import LearningRate
from .config.retrieval import sampled_features
from .errors import UserError
from .samples.schema import DatasetSchema, FeatureSchema
from .tasks import Tasks, make_tasks
from .topology.sharding import bucket_bounds

WEIGHTED_POOLINGS = ("sum", "mean", "jagged")  # of features whose ids have weights
MIN_BUCKET_ROWS = 64  # with fewer, hashing fills buckets so unevenly that much capacity stays unused
MOST_BUCKET_ROWS = 1 << 32  # that are counted in 32 bits
NOTED_BYTES = 4  # beside a row, for the last step that used it, where its stamp doesn't tell (`fresh`)


@dataclass(frozen=True)
class TableLayout:
    """Describes one table as all ranks see it."""

    name: str
    config: TableConfig
    dim_group: int
    capacity_rows: int
    num_buckets: int

    @property
    def dim(self) -> int:
        """Returns the number of elements of a row."""
        return self.config.dim

    @property
    def bucket_rows(self) -> int:
        """Returns the capacity of one bucket in rows."""
        return self.capacity_rows // self.num_buckets


@dataclass(frozen=True)
class FeatureLayout:
    """Describes one feature: which table it reads, and how its rows become an input of the model."""

    name: str
    table: int
    pooling: str
    multi: bool  # several rows a sample: multi-hot, or an id hashed in several rounds
    max_length: int | None  # ids
    rounds: int  # rows that an id is the sum of
    sequence: str | None = None  # the [sequences.NAME] that it is part of
    shares: str | None = None  # the feature before it whose bag offsets are its own, and travel for both
    weighted: bool = False  # its ids have weights
    like: str | None = None  # the feature of the catalogue that its ids are drawn for


@dataclass(frozen=True)
class Layout:
    """Holds the tables, sorted by (dim, order of first use), the features and the tasks.

    A *dim group* is the run of tables that share a dim.
    """

    tables: tuple[TableLayout, ...]
    features: tuple[FeatureLayout, ...]
    tasks: Tasks = Tasks()

    @cached_property
    def dim_groups(self) -> tuple[int, ...]:
        """Returns the dim of each dim group."""
        return tuple(dict.fromkeys(t.dim for t in self.tables))

    @cached_property
    def dim_group_of_table(self) -> tuple[int, ...]:
        """Returns the index of each table's dim group."""
        return tuple(t.dim_group for t in self.tables)

    def tables_of_dim_group(self, dim_group: int) -> range:
        """Returns the indices of a dim group's tables."""
        inside = [i for i, t in enumerate(self.tables) if t.dim_group == dim_group]
        return range(inside[0], inside[-1] + 1)

    @cached_property
    def sequences(self) -> dict[str, list[str]]:
        """Returns the features of each [sequences.NAME]."""
        found: dict[str, list[str]] = {}
        for feature in self.features:
            if feature.sequence is not None:
                found.setdefault(feature.sequence, []).append(feature.name)
        return found

    @cached_property
    def weighted(self) -> dict[str, int]:
        """Returns the features whose ids have weights, which travel, and their places in `features`."""
        return {f.name: i for i, f in enumerate(self.features) if f.weighted}

    @cached_property
    def bags(self) -> tuple[str, ...]:
        """Returns the names of the features whose bag offsets travel."""
        return tuple(f.name for f in self.features if f.multi and f.shares is None)

    def without_disk(self) -> Layout:
        """Returns the same without disk tiers, for a few steps on a node that may lack their directories."""
        tables = (replace(t, config=replace(t.config, disk=None)) for t in self.tables)
        return replace(self, tables=tuple(tables))

    def bounds(self, num_servers: int) -> list[list[int]]:
        """Returns the bounds of the servers' buckets, num_servers + 1 for each table."""
        return [bucket_bounds(t.num_buckets, num_servers) for t in self.tables]


def make_layout(config: Config, schema: DatasetSchema) -> Layout:
    """Orders the tables, features and tasks of a data set under a configuration.

    Every feature of the data set is used unless the configuration's `data.features` says otherwise; a feature
    without `table` has a table of its own name.

    Raises UserError for features, tables or tasks that don't fit.
    """
    schema, drawn = with_sampled(config, schema), sampled_features(config)
    available = {f.name: f for f in schema.features}
    for name, members in config.features_of_sequences.items():
        if missing := [member for member in members if member not in available]:
            raise UserError(
                f"[sequences.{name}] names {missing[0]!r}, but the dataset has no such feature; it has: "
                f"{', '.join(available) or 'none'}"
            )
    unknown = [name for name in config.features if name not in available]
    if unknown:
        raise UserError(
            f"[features.{unknown[0]}] is configured, but the dataset has no such feature; it has: "
            f"{', '.join(available) or 'none'}"
        )
    for name, members in config.features_of_sequences.items():
        for member in members:
            if not available[member].multi:
                raise UserError(
                    f"[sequences.{name}] names {member!r}, which has one id in each sample, expected "
                    "multi-hot features; take it out of the sequence"
                )
    for name, stored in available.items():
        if stored.weighted and (pooling := config.feature(name).pooling) not in WEIGHTED_POOLINGS:
            raise UserError(
                f'[features.{name}] has pooling = "{pooling}", which can\'t use the weights that its ids '
                f"have in the dataset (/ids/{name}/weights); expected one of {', '.join(WEIGHTED_POOLINGS)}"
            )
    default = config.table("default")
    names: dict[str, TableConfig] = {}
    users: dict[str, list[str]] = {}
    for name in available:
        feature = config.feature(name)
        table_name = feature.table or (drawn[name][0] if name in drawn else name)
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
        parts = row_bytes(table_config)
        each = parts.weights + parts.state + parts.beside
        rows = table_config.capacity_bytes // each
        _check_capacity(config, schema, name, users[name], rows, each)
        buckets = table_config.buckets
        while buckets > 1 and rows // buckets < MIN_BUCKET_ROWS:
            buckets //= 2
        if rows // buckets >= MOST_BUCKET_ROWS:
            raise UserError(
                f"table {name!r} has a capacity of {config_capacity(config, name)} = {rows} rows in "
                f"{buckets} buckets, expected less than {MOST_BUCKET_ROWS} in each; raise its buckets, "
                "or lower its capacity"
            )
        tables.append(TableLayout(name, table_config, dims.index(table_config.dim), rows, buckets))
    index = {t.name: i for i, t in enumerate(tables)}
    sequence_of = {f: name for name, members in config.features_of_sequences.items() for f in members}
    features: list[FeatureLayout] = []
    for name in available:
        feature = config.feature(name)
        table = index[feature.table or (drawn[name][0] if name in drawn else name)]
        hashing = tables[table].config.hash
        rounds = hashing.rounds if hashing else 1
        multi = available[name].multi or rounds > 1
        sequence = sequence_of.get(name)
        alike = (f for f in features if sequence and (f.sequence, f.rounds) == (sequence, rounds))
        first = next(alike, None)
        features.append(
            FeatureLayout(
                name,
                table,
                feature.pooling,
                multi,
                feature.max_length,
                rounds,
                sequence,
                None if first is None else first.name,
                available[name].weighted,
                drawn[name][0] if name in drawn else None,
            )
        )
    return Layout(tuple(tables), tuple(features), make_tasks(config, schema))


def with_sampled(config: Config, schema: DatasetSchema) -> DatasetSchema:
    """Returns the schema with the features behind its own that aren't in the data but drawn (`sampled`).

    Raises UserError if the data has one of them.
    """
    drawn = sampled_features(config)
    for name in drawn:
        if name in schema.feature_names:
            raise UserError(
                f"[features.{name}] is sampled, but the dataset has a feature of that name; choose another"
            )
    features = [FeatureSchema(name, multi=True, mean_length=count) for name, (_, count) in drawn.items()]
    return replace(schema, features=(*schema.features, *features))


def row_bytes(table: TableConfig) -> _native.RowBytes:
    """Returns the bytes of a row: weights, optimizer's state, and what the table needs beside them."""
    return _native.row_bytes(
        str(table.optimizer["name"]), table.dim, storage=table.storage, state_storage=table.state_dtype
    )


def native_config(
    config: Config, table: TableLayout, first_bucket: int, end_bucket: int
) -> _native.TableConfig:
    """Returns what the native table of the buckets [first_bucket, end_bucket) is made with."""
    options = dict(table.config.optimizer)
    init, disk = table.config.init, table.config.disk
    names = ("low", "high") if init["name"] == "uniform" else ("mean", "std")
    return _native.TableConfig(
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
        clip_norm=table.config.clip_norm,
        storage=table.config.storage,
        state_storage=table.config.state_dtype,
        eviction=table.config.eviction,
        ttl=table.config.ttl,
        admit_after=int(table.config.admission.get("after", 1)),
        admit_probability=float(table.config.admission.get("probability", 1.0)),
        disk_folder="" if disk is None else disk.path,
        disk_bytes=0
        if disk is None
        else disk.capacity_bytes * (end_bucket - first_bucket) // table.num_buckets,
        full_disk_evicts=disk is not None and disk.on_full == "evict",
        threads=config.server_threads,
    )


def _table_seed(seed: int, table: str) -> int:
    """Returns a seed that depends on the table's name.

    So neither other tables nor their order change the initial values of a table's rows.
    """
    digest = hashlib.blake2b(f"{seed}:{table}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def server_bytes(
    config: Config, layout: Layout, num_servers: int, step_rows: Sequence[float] | None = None
) -> int:
    """Returns the resident memory of the tables of the server with the most, when they are full.

    step_rows: for each table the rows of one step over all servers; with them the working memory of a step is
    included, and room for new rows before others are evicted.
    """
    sizes = [0] * num_servers
    for i, (table, bounds) in enumerate(zip(layout.tables, layout.bounds(num_servers), strict=True)):
        hashing, rows = table.config.hash, table.bucket_rows * table.num_buckets
        full = rows if hashing is None else min(rows, hashing.rounds * hashing.size)
        in_step = 0.0 if step_rows is None else step_rows[i]
        noted = NOTED_BYTES * (config.mode == "fresh" and table.config.eviction == "lfu")
        known: dict[int, int] = {0: 0}  # by the number of buckets: most servers have the same
        for server, (first, end) in enumerate(itertools.pairwise(bounds)):
            if (count := end - first) not in known:
                rows_here, of_step = (math.ceil(n * count / table.num_buckets) for n in (full, in_step))
                native = native_config(config, table, first, end)
                known[count] = _native.table_bytes(native, rows_here, step_rows=of_step)
                known[count] += noted * (rows_here + of_step)
            sizes[server] += known[count]
    return max(sizes)


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
    """Returns the most ids of a sample; their mean if there is no limit, and 1 if that isn't known either."""
    if not feature.multi:
        return 1
    return max_length or max(1.0, feature.mean_length or 1.0)


def config_capacity(config: Config, table: str) -> str:
    """Returns a table's capacity as the user wrote it."""
    return str(config.tables.get(table, config.table("default")).capacity)


def rate_schedules(layout: Layout, num_steps: int) -> list[tuple[LearningRate, list[int]]]:
    """Returns the learning rates that vary, each with the indices of the tables that have it."""
    found: list[tuple[LearningRate, list[int]]] = []
    for index, table in enumerate(layout.tables):
        rate = LearningRate(table.config.schedule, num_steps)
        same = [tables for other, tables in found if other == rate]
        if same:
            same[0].append(index)
        elif rate.varies:
            found.append((rate, [index]))
    return found
