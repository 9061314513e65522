"""Loads rows of a checkpoint into the tables of any number of servers, of the same run or a new one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from persia_hpc._native import Table
from persia_hpc.arrays import Array
from persia_hpc.config import load_config
from persia_hpc.errors import DataError, UserError
from persia_hpc.table_layout import TableLayout

from . import files
from .ahead import one_ahead
from .tables import bucket_of, open_shard, table_attributes

if TYPE_CHECKING:
    from persia_hpc.parameter_server.engine import ParameterServer

ROWS_AT_ONCE = 1 << 16


def load_rows(directory: Path, server: ParameterServer) -> None:
    """Loads the rows of a checkpoint that belong to `server`'s buckets, exactly as they were.

    Each server checks its share of the files, so the tables are good only if none of the servers has found
    damage.
    Raises UserError for tables that don't fit, naming what differs, DataError for damage.
    """
    with _opened(directory, server) as (manifest, opened):
        for layout, table, owned in zip(server.layout.tables, server.tables, server.buckets, strict=True):
            if table is not None:
                _load_table(opened, layout, table, owned)
                table.set_next_step(manifest["step"] + 1)


def load_initial_rows(directory: Path, server: ParameterServer) -> None:
    """Gives a new run's tables the rows of those with the same name in another run's checkpoint.

    Rows are as if no step had used them yet. The optimizer's state comes too if the table has the same
    optimizer.
    Raises UserError if no table has the name of one there, or if one with the same name differs in dim or
    hash, DataError for damage.
    """
    with _opened(directory, server) as (manifest, opened):
        old = load_config(manifest["config"])
        there = {name: dict(group.attrs) for shard in opened[0] for name, group in shard.items()}
        shared = [layout for layout in server.layout.tables if layout.name in there]
        if not shared:
            here = ", ".join(layout.name for layout in server.layout.tables)
            raise UserError(f"{directory} has none of the tables {here}; it has {', '.join(there)}")
        for layout, table in zip(server.layout.tables, server.tables, strict=True):
            if layout in shared and table is not None:
                if old.table(layout.name).hash != layout.config.hash:
                    raise UserError(
                        f"{directory}: table {layout.name!r} hashes ids in another way there; set "
                        f"tables.{layout.name}.hash as it was, or give the table another name"
                    )
                _load_initial_table(directory, opened, layout, table, there[layout.name])


@contextmanager
def _opened(
    directory: Path, server: ParameterServer
) -> Iterator[tuple[dict[str, Any], list[list[h5py.File]]]]:
    """Opens the shards of a checkpoint, and of its base if it has one; yields them with the manifest.

    Meanwhile a thread compares this server's share of the files with the checksums in the manifests.
    """
    manifest = files.read_manifest(directory)
    sources = [(directory, manifest)]
    base = files.base_of(directory, manifest)
    if base is not None:
        sources.append((base, files.read_manifest(base)))
    opened = [_open_shards(path, found) for path, found in sources]
    with ThreadPoolExecutor(1) as beside:
        checks = [
            beside.submit(files.check_part, path, found, name, content=True)
            for path, found in sources
            for name in found["shards"][server.server_rank :: server.num_servers]
        ]
        try:
            yield manifest, opened
            for check in checks:
                check.result()
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise DataError(f"{directory}: can't be read ({error}); use an older checkpoint") from error
        finally:
            for check in checks:
                check.cancel()
            for shards in opened:
                for shard in shards:
                    shard.close()


def _load_initial_table(
    directory: Path,
    opened: list[list[h5py.File]],
    layout: TableLayout,
    table: Table,
    there: Mapping[str, Any],
) -> None:
    if there["dim"] != layout.dim:
        raise UserError(
            f"{directory}: table {layout.name!r} has dim {there['dim']} there, {layout.dim} here; give it "
            "another name, or that dim"
        )
    same = (there["optimizer"], there["eviction"]) == (
        layout.config.optimizer["name"],
        layout.config.eviction,
    )
    whole = range(int(there["num_buckets"]))
    for group, begin, end in _parts(opened[0], layout.name, whole):
        sources = [(group, begin, end, np.empty(0, np.uint64))]
        if not group.attrs["complete"]:
            sources = [*_base_parts(opened[1], group, layout.name, whole), *sources]
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


def _open_shards(directory: Path, manifest: Mapping[str, Any]) -> list[h5py.File]:
    opened = []
    for name in manifest["shards"]:
        files.check_part(directory, manifest, name, content=False)
        try:
            opened.append(open_shard(directory / name))
        except OSError as error:
            raise DataError(
                f"{directory / name}: can't be read ({error}); use an older checkpoint"
            ) from error
    return opened


def _load_table(opened: list[list[h5py.File]], layout: TableLayout, table: Table, owned: range) -> None:
    for shards in opened:
        for shard in shards:
            if layout.name in shard:
                _check_table(shard.filename, shard[layout.name].attrs, layout)
    found = 0
    for group, begin, end in _parts(opened[0], layout.name, owned):
        found += int(np.isin(group["buckets"][:], np.arange(owned.start, owned.stop)).sum())
        if not group.attrs["complete"]:
            for base, first, last, removed in _base_parts(opened[1], group, layout.name, owned):
                for rows in _slices(base, first, last):
                    stays = ~_is_in(rows["keys"], removed)
                    table.import_rows({k: np.ascontiguousarray(v[stays]) for k, v in rows.items()})
        for rows in _slices(group, begin, end):
            table.import_rows(rows)
        buckets = group["buckets"][:]
        ages = group["ages"][:]
        counted = group["counted"][:] if "counted" in group else np.zeros_like(ages)
        for at in np.flatnonzero((buckets >= owned.start) & (buckets < owned.stop)):
            sightings = group["sightings"][at] if "sightings" in group else np.empty(0, np.uint8)
            try:
                table.restore_bucket(int(buckets[at]), int(ages[at]), int(counted[at]), sightings)
            except ValueError as error:
                raise UserError(
                    f"{group.file.filename}: table {layout.name!r}: {error}: admission counts need the "
                    "capacity and admission that they were made with"
                ) from None
    if found != len(owned):
        raise DataError(
            f"the table {layout.name!r} of {Path(opened[0][0].filename).parent} lacks "
            f"{len(owned) - found} of {len(owned)} buckets; use an older checkpoint"
        )


def _base_parts(
    base: list[h5py.File], changes: h5py.Group, name: str, owned: range
) -> Iterator[tuple[h5py.Group, int, int, Array]]:
    """Yields the parts of a full checkpoint that hold the buckets of a group of changes.

    The parts are as from `_parts`, followed by the keys of rows that were removed since.
    """
    removed = changes["removed"][:]
    buckets = changes["buckets"][:]
    shared = range(max(owned.start, int(buckets[0])), min(owned.stop, int(buckets[-1]) + 1))
    for group, begin, end in _parts(base, name, shared):
        yield group, begin, end, removed


def _is_in(keys: Array, ordered: Array) -> Array:
    if not len(ordered):
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: Array = ordered[at] == keys
    return found


def _parts(shards: list[h5py.File], name: str, owned: range) -> list[tuple[h5py.Group, int, int]]:
    """Returns the group of each shard that has some of the `owned` buckets.

    Each comes with the numbers at which its rows in these buckets begin and end.
    """
    parts = []
    for shard in shards:
        if name not in shard:
            continue
        group = shard[name]
        buckets = group["buckets"][:]
        which = np.flatnonzero((buckets >= owned.start) & (buckets < owned.stop))
        if len(which):
            offsets = group["bucket_offsets"][:]
            parts.append((group, int(offsets[which[0]]), int(offsets[which[-1] + 1])))
    return parts


def _check_table(file_name: str, attributes: Mapping[str, Any], layout: TableLayout) -> None:
    here = table_attributes(layout)
    wrong = [f"{k} {attributes[k]} there, {v} here" for k, v in here.items() if attributes[k] != v]
    if wrong:
        raise UserError(
            f"{file_name}: table {layout.name!r} doesn't fit the configuration: {'; '.join(wrong)}"
        )


def _slices(group: h5py.Group, begin: int, end: int) -> Iterator[dict[str, Array]]:
    names = [name for name in ("keys", "rows", "state", "stamps", "steps") if name in group]
    return one_ahead(
        {name: group[name][at : min(at + ROWS_AT_ONCE, end)] for name in names}
        for at in range(begin, end, ROWS_AT_ONCE)
    )
