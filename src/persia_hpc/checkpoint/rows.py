"""Loads rows of a checkpoint into the tables of any number of servers, of the same run or a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persia_hpc._native import Table
from persia_hpc.arrays import Array
from persia_hpc.config import TableConfig, load_config
from persia_hpc.errors import DataError, PersiaError, UserError
from persia_hpc.table_layout import TableLayout
from persia_hpc.user_objects import describe

from .adopt import Adoption
from .ahead import one_ahead
from .manifest import check_part, read_manifest, read_schema, sources_of, unreadable
from .merged import bucket_ranges
from .names import DENSE, is_cold
from .parts import COLUMNS, TablePart, open_parts
from .tables import bucket_of, table_attributes

if TYPE_CHECKING:
    from persia_hpc.parameter_server.engine import ParameterServer

ROWS_AT_ONCE = 1 << 16
# What the values of a file may lead to; anything else is a fault of ours, whatever they are.
_OF_VALUES = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
Parts = Mapping[str, TablePart]  # of a server, by the names of their tables


def load_rows(directory: Path, server: ParameterServer) -> None:
    """Loads the rows of a checkpoint that belong to `server`'s buckets, exactly as they were.

    Each server checks its share of the files, and all its rows in files where it leaves them, so the tables
    are good only if none of the servers has found damage.
    Raises UserError for tables that don't fit, naming what differs, DataError for damage.
    """
    buckets = {t.name: owned for t, owned in zip(server.layout.tables, server.buckets, strict=True)}
    with _opened(directory, server, buckets) as (manifest, opened, check):
        adoption = Adoption(directory, manifest, server.server_rank, server.num_servers, check)
        for layout, table, owned in zip(server.layout.tables, server.tables, server.buckets, strict=True):
            if table is not None:
                load_table(opened, layout, table, owned, adoption)
                table.set_next_step(manifest["step"] + 1)
    server.cold_files.began(adoption.files())
    server.loaded()


def load_initial_rows(directory: Path, server: ParameterServer) -> None:
    """Gives a new run's tables the rows of those with the same name in another run's checkpoint.

    Rows are as if no step had used them yet. The optimizer's state comes too if the table has the same
    optimizer.
    Raises UserError if no table has the name of one there, or if one with the same name differs in dim or
    hash, DataError for damage.
    """
    manifest = read_manifest(directory)
    old, features = load_config(manifest["config"]), read_schema(manifest).feature_names
    there = {name: old.table(name) for name in (old.feature(f).table or f for f in features)}
    shared = [layout for layout in server.layout.tables if layout.name in there]
    if not shared:
        here = ", ".join(layout.name for layout in server.layout.tables)
        raise UserError(f"{directory} has none of the tables {here}; it has {', '.join(there)}")
    for layout in shared:
        _check_initial(directory, layout, there[layout.name])
    with _opened(directory, server) as (_, opened, _):
        for layout, table in zip(server.layout.tables, server.tables, strict=True):
            if layout in shared and table is not None:
                _load_initial_table(opened, layout, table, there[layout.name])
    server.loaded()


def _check_initial(directory: Path, layout: TableLayout, there: TableConfig) -> None:
    if there.hash != layout.config.hash:
        raise UserError(
            f"{directory}: table {layout.name!r} hashes ids in another way there; set "
            f"tables.{layout.name}.hash as it was, or give the table another name"
        )
    if there.dim != layout.dim:
        raise UserError(
            f"{directory}: table {layout.name!r} has dim {there.dim} there, {layout.dim} here; give it "
            "another name, or that dim"
        )


@contextmanager
def _opened(
    directory: Path, server: ParameterServer, owned: Mapping[str, range] | None = None
) -> Iterator[tuple[dict[str, Any], list[list[Parts]], Callable[[str], None]]]:
    """Opens the parts of a checkpoint, and of its base if it has one; yields them with the manifest.

    owned: see `open_parts`.
    Meanwhile a thread compares this server's share of the files with the checksums in the manifests; with
    `owned` not the newest one's files of rows from disk, but those of them for which the function that comes
    with the parts is called. What goes wrong with a damaged file, whatever it is, is told as damage of that
    file; out of memory is not, nor what goes wrong though all files are as they were written.
    """
    sources = sources_of(directory)
    parts = [
        (path, found, name)
        for i, (path, found) in enumerate(sources)
        for name in found["files"]
        if i == 0 or name != DENSE
    ]
    for part in parts:
        check_part(*part, content=False)
    with ThreadPoolExecutor(1) as beside, ExitStack() as files:
        later = {} if owned is None else {p[2]: p for p in parts if p[0] == sources[0][0] and is_cold(p[2])}
        now = [part for part in parts if part not in later.values()]
        checks = [
            beside.submit(check_part, *part, content=True)
            for part in now[server.server_rank :: server.num_servers]
        ]

        def check(name: str) -> None:
            if name in later:
                checks.append(beside.submit(check_part, *later.pop(name), content=True))

        try:
            opened: list[list[Parts]] = [
                [open_parts(path, found, name, files, owned=owned) for name in found["shards"]]
                for path, found in sources
            ]
            yield sources[0][1], opened, check
            for each in checks:
                each.result()
        except Exception as error:
            for part in parts:
                check_part(*part, content=True)
            if isinstance(error, _OF_VALUES):
                raise PersiaError(
                    f"{directory} can't be loaded, though its files have their checksums: {describe(error)}; "
                    "this is a fault of the program that loads it, or of the one that wrote it: report it"
                ) from error
            if isinstance(error, PersiaError) or not isinstance(error, (OSError, RuntimeError, MemoryError)):
                raise
            raise unreadable(directory, error) from error
        finally:
            for each in checks:
                each.cancel()


def _load_initial_table(
    opened: list[list[Parts]], layout: TableLayout, table: Table, there: TableConfig
) -> None:
    same = (there.optimizer["name"], there.eviction) == (
        layout.config.optimizer["name"],
        layout.config.eviction,
    )
    whole = range(max(shard[layout.name].num_buckets for shard in opened[0] if layout.name in shard))
    for part, begin, end in _parts(opened[0], layout.name, whole):
        sources = [(part, begin, end, np.empty(0, np.uint64))]
        if not part.complete:
            sources = [*_base_parts(opened[1], part, layout.name, whole), *sources]
        for source, first, last, removed in sources:
            for rows in _slices(source, first, last):
                buckets = bucket_of(rows["keys"], layout.num_buckets)
                mine = (buckets >= table.first_bucket) & (buckets < table.end_bucket)
                mine &= ~_is_in(rows["keys"], removed)
                if layout.config.eviction != "lfu" or not same:
                    rows["stamps"] = np.zeros_like(rows["stamps"])
                if not same:
                    rows = {name: rows[name] for name in ("keys", "rows", "stamps")}
                table.import_rows({k: np.ascontiguousarray(v[mine]) for k, v in rows.items()})


def load_table(
    opened: list[list[Parts]], layout: TableLayout, table: Table, owned: range, adoption: Adoption
) -> None:
    """Loads a table's rows in the `owned` buckets; those on disk stay where they are, if they can.

    Raises UserError or DataError as `load_rows` does.
    """
    _check_table(opened, layout)
    found = 0
    for part, begin, end in _parts(opened[0], layout.name, owned):
        found += end - begin
        if not part.complete:
            for base, first, last, removed in _base_parts(opened[1], part, layout.name, owned):
                for rows in _slices(base, first, last):
                    stays = ~_is_in(rows["keys"], removed)
                    table.import_rows({k: np.ascontiguousarray(v[stays]) for k, v in rows.items()})
        adopted = [cold for cold in part.cold if part.complete and adoption.fits(cold, layout, table)]
        others = [cold for cold in part.cold if cold not in adopted]
        for cold in others:
            adoption.copies(cold)
        for rows in _slices(part.with_cold(others), begin, end):
            table.import_rows(rows)
        for cold in adopted:
            if not adoption.adopt(cold, layout, table):
                adoption.copies(cold)
                for rows in _slices(cold, begin, end):
                    table.import_rows(rows)
        decides = part.decides(begin, end)
        ages = decides["ages"]
        counted = decides.get("counted", np.zeros_like(ages))
        for i, age in enumerate(ages):
            sightings = decides["sightings"][i] if "sightings" in decides else np.empty(0, np.uint8)
            try:
                table.restore_bucket(begin + i, int(age), int(counted[i]), sightings)
            except ValueError as error:
                raise UserError(
                    f"{part.group.file.filename}: table {layout.name!r}: {error}: admission counts need the "
                    "capacity and admission that they were made with"
                ) from None
    if found != len(owned):
        raise DataError(
            f"table {layout.name!r} lacks {len(owned) - found} of {len(owned)} buckets; use an older "
            "checkpoint"
        )


def _base_parts(
    base: list[Parts], changes: TablePart, name: str, owned: range
) -> Iterator[tuple[TablePart, int, int, Array]]:
    """Yields the parts of a full checkpoint that hold the buckets of a part of changes.

    The parts are as from `_parts`, followed by the keys of rows that were removed since.
    """
    removed = changes.group["removed"][:]
    for part, begin, end in _parts(base, name, range(*changes.clip(owned.start, owned.stop))):
        yield part, begin, end, removed


def _is_in(keys: Array, ordered: Array) -> Array:
    if not len(ordered):
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: Array = ordered[at] == keys
    return found


def _parts(shards: list[Parts], name: str, owned: range) -> list[tuple[TablePart, int, int]]:
    """Returns the part of each shard that has some of the `owned` buckets, with these: [begin, end)."""
    clipped = [(s[name], *s[name].clip(owned.start, owned.stop)) for s in shards if name in s]
    return [(part, begin, end) for part, begin, end in clipped if begin < end]


def _check_table(opened: list[list[Parts]], layout: TableLayout) -> None:
    here = table_attributes(layout)
    for part in (shard[layout.name] for shards in opened for shard in shards if layout.name in shard):
        there = {key: part.group.attrs[key] for key in here}
        wrong = [
            f"{key} {there[key]} there, {value} here" for key, value in here.items() if there[key] != value
        ]
        if wrong:
            raise UserError(
                f"{part.group.file.filename}: table {layout.name!r} doesn't fit the configuration: "
                f"{'; '.join(wrong)}"
            )


def _slices(part: TablePart, begin: int, end: int) -> Iterator[dict[str, Array]]:
    """Yields the rows of buckets [begin, end), some at a time; those from disk among the others."""
    first = int(part.buckets[0])
    if not part.is_plain:
        ranges = bucket_ranges(part.counts()[begin - first : end - first], ROWS_AT_ONCE)
        return one_ahead(part.read(begin + low, begin + high, COLUMNS) for low, high in ranges)
    names = [name for name in COLUMNS if name in part.group]
    low, high = int(part.offsets[begin - first]), int(part.offsets[end - first])
    return one_ahead(
        {name: part.group[name][at : min(at + ROWS_AT_ONCE, high)] for name in names}
        for at in range(low, high, ROWS_AT_ONCE)
    )
