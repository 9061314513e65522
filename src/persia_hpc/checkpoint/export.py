"""Writes a table of a checkpoint into a Parquet file for other tools: `persia-hpc checkpoint export`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from persia_hpc._native import unmix
from persia_hpc.config import load_config
from persia_hpc.durable import replacing, sync_path
from persia_hpc.errors import PersiaError, UserError

from .merged import CheckpointReader, MergedTable
from .vectors import Vectors, live_rows


@dataclass
class Exported:
    """Says how many rows were written to which file, and what was left out."""

    path: Path
    rows: int = 0
    expired: int = 0  # rows past their time to live: left out, as look-ups don't see them
    notes: tuple[str, ...] = ()


def export_table(
    checkpoint: CheckpointReader, name: str, out: Path, *, ids: bool = False, state: bool = False
) -> Exported:
    """Writes the rows of a table to `out` in ascending order of keys, in bounded memory.

    An existing file is replaced only when the new one is complete.
    Columns: `key` uint64; with `ids` also `id` uint64, unless the table is hashed; `embedding` array of D
    float32; `last_step` uint32 with eviction "lru", `uses` uint32 with "lfu". With `state` also what the
    optimizer keeps: `state` array of S float32, `updates` uint32.
    Raises UserError for an unknown table, DataError for damage, PersiaError if `out` can't be written.
    """
    if name not in checkpoint.tables:
        raise UserError(f"there is no table {name!r}; this checkpoint has: {', '.join(checkpoint.tables)}")
    table = checkpoint.tables[name]
    config = load_config(checkpoint.manifest["config"]).table(name)
    notes = []
    if ids and config.hash is not None:
        notes.append("no column `id`: the table is hashed, many ids share a key")
    width = table.widths["state"][0]
    if state and not width:
        notes.append(f"no column `state`: {table.attributes['optimizer']} has none")
    kinds: dict[str, pl.DataType | type[pl.DataType]] = {"key": pl.UInt64}
    if ids and config.hash is None:
        kinds["id"] = pl.UInt64
    kinds["embedding"] = pl.Array(pl.Float32, table.dim)
    kinds["last_step" if config.eviction == "lru" else "uses"] = pl.UInt32
    if state and width:
        kinds["state"] = pl.Array(pl.Float32, width)
    if state and "steps" in table.widths:
        kinds["updates"] = pl.UInt32
    done = Exported(out, notes=tuple(notes))
    schema = pl.Schema(kinds)
    frames = _frames(table, schema, config.ttl, checkpoint.manifest["step"] + 1, done)
    _write(frames, schema, out)
    return done


def _frames(
    table: MergedTable, schema: pl.Schema, ttl: int, next_step: int, done: Exported
) -> Iterator[pl.DataFrame]:
    columns = [c for c in ("keys", "rows", "stamps", "state", "steps") if c != "state" or "state" in schema]
    for rows, expired in live_rows(table, ttl, next_step, columns):
        done.expired += expired
        done.rows += len(rows["keys"])
        values = {
            "key": rows["keys"],
            "id": unmix(np.ascontiguousarray(rows["keys"])) if "id" in schema else None,
            "embedding": rows["rows"],
            "last_step": rows["stamps"],
            "uses": rows["stamps"],
            "state": rows.get("state"),
            "updates": rows.get("steps"),
        }
        yield pl.DataFrame({name: values[name] for name in schema}, schema=schema)


def write_vectors(vectors: Vectors, ids: str, out: Path) -> None:
    """Writes ids and vectors to a Parquet file: columns `id`, int64 or uint64, and `embedding`, D float32.

    Raises PersiaError if `out` can't be written.
    """
    kind = pl.UInt64 if ids == "uint64" else pl.Int64
    schema = pl.Schema({"id": kind, "embedding": pl.Array(pl.Float32, vectors.dim)})
    frames = (
        pl.DataFrame({"id": numbers.view(ids), "embedding": rows}, schema=schema)
        for numbers, rows in vectors.parts
    )
    _write(frames, schema, out)


def _write(frames: Iterator[pl.DataFrame], schema: pl.Schema, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            sink(frames, schema, partial)
            sync_path(partial)
    except OSError as error:
        raise PersiaError(f"{out} can't be written: {error}") from error


def sink(frames: Iterator[pl.DataFrame], schema: pl.Schema, out: Path) -> None:
    """Writes frames of one schema to a Parquet file, in bounded memory.

    Raises OSError if it can't be written, and what making the frames raises.
    """
    failed: list[Exception] = []

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        try:
            yield from frames
        except Exception as error:  # polars would make another error of it
            failed.append(error)
            raise

    try:
        register_io_source(source, schema=schema).sink_parquet(out)
    except (OSError, pl.exceptions.PolarsError) as error:
        if failed:
            raise failed[0] from error
        raise OSError(*(error.args if isinstance(error, OSError) else (str(error),))) from error
