"""Reads embedding tables that other programs wrote, for a new run to begin with: `checkpoint.init_from`.

Parquet and safetensors as `export --tables` writes them, and state dicts of TorchRec. Only servers read rows.

N rows, D dim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from persia_hpc._native import mix
from persia_hpc.arrays import Array
from persia_hpc.config import Config
from persia_hpc.errors import DataError, UserError, needs_package
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import Layout, TableLayout, make_layout

from .names import MANIFEST
from .tables import bucket_of

if TYPE_CHECKING:
    from persia_hpc.parameter_server.engine import ParameterServer

ENDS = (".parquet", ".safetensors", ".pt", ".pth", ".bin")
IDS, EMBEDDINGS = "ids", "embeddings"  # of a safetensors file of one table
STATE_KEY = re.compile(r"(?:^|\.)(?:embedding_bags|embeddings)\.(.+)\.weight$")  # TorchRec's collections
ROWS_AT_ONCE = 1 << 16
Read = Callable[[], Iterator[tuple[Array, Array]]]


@dataclass(frozen=True)
class ForeignTable:
    """Describes a table in a file. read: yields ids uint64 [n] and rows float32 [n, D] of it."""

    path: Path
    dim: int
    read: Read


def foreign_source(config: Config) -> Path | None:
    """Returns the file or folder of tables in `checkpoint.init_from`; None if that is a checkpoint or a run.

    Raises UserError for `init_parts = "dense"`, which such files don't have.
    """
    settings = config.checkpoint
    if settings.init_from is None:
        return None
    path = Path(settings.init_from).expanduser()
    if path.is_dir():
        known = (path / MANIFEST).exists() or (path / "latest").exists() or any(path.glob("step-*"))
        if known or not any(each.suffix in ENDS for each in path.iterdir()):
            return None
    elif path.suffix not in ENDS:
        return None
    if settings.init_parts == "dense":
        raise UserError(
            f'checkpoint.init_parts = "dense": {path} has tables alone; leave it out, or name a checkpoint'
        )
    return path


def check_foreign(config: Config, schema: DatasetSchema) -> bool:
    """Checks, if `checkpoint.init_from` names files of tables, that they fit; returns whether it does.

    Raises UserError for files that can't be read or don't fit.
    """
    path = foreign_source(config)
    if path is not None:
        _matched(config, make_layout(config, schema), path)
    return path is not None


def load_foreign(path: Path, config: Config, server: ParameterServer) -> None:
    """Gives a new run's tables the rows of those files, as if no step had used them yet.

    Raises UserError for what doesn't fit, repeated ids and rows that aren't finite, DataError for damage.
    """
    for layout, found in _matched(config, server.layout, path):
        table = server.tables[server.layout.tables.index(layout)]
        if table is None:
            continue
        seen: list[Array] = []
        for ids, given in found.read():
            rows = _fitted(given, layout.dim)
            keys = mix(np.ascontiguousarray(ids))
            bad = ~np.isfinite(rows).all(axis=1)
            if bad.any():
                raise UserError(
                    f"{found.path}: the row of id {ids[bad.argmax()]} isn't finite; leave it out of the file"
                )
            buckets = bucket_of(keys, layout.num_buckets)
            mine = (buckets >= table.first_bucket) & (buckets < table.end_bucket)
            seen.append(keys[mine])
            table.import_rows(
                {
                    "keys": np.ascontiguousarray(keys[mine]),
                    "rows": np.ascontiguousarray(rows[mine]),
                    "stamps": np.zeros(int(mine.sum()), np.uint32),
                }
            )
        every = np.concatenate(seen) if seen else np.zeros(0, np.uint64)
        if len(np.unique(every)) < len(every):
            raise UserError(f"{found.path}: got ids of table {layout.name!r} twice, expected each once")
    server.loaded()


def _matched(config: Config, layout: Layout, path: Path) -> list[tuple[TableLayout, ForeignTable]]:
    """Returns the run's tables for which there are rows, with these."""
    there = _tables_of(path)
    names = config.checkpoint.init_tables
    here = {table.name: table for table in layout.tables}
    listed = ", ".join(there) or "none"
    for name, other in names.items():
        if name not in here:
            raise UserError(
                f"checkpoint.init_tables: there is no table {name!r}; this run has: {', '.join(here)}"
            )
        if other not in there:
            raise UserError(f"checkpoint.init_tables.{name}: {path} has no table {other!r}; it has: {listed}")
    pairs = [
        (table, there[names.get(name, name)])
        for name, table in here.items()
        if names.get(name, name) in there
    ]
    if not pairs:
        raise UserError(
            f"{path} has none of the tables {', '.join(here)}; it has: {listed}; say which is which: "
            '[checkpoint.init_tables] item = "t_item"'
        )
    for table, found in pairs:
        if table.config.hash is not None:
            raise UserError(
                f"{found.path}: the table {table.name!r} is hashed, so rows of ids have no place in it; take "
                f"tables.{table.name}.hash away, or give the table another name"
            )
        if found.dim != table.dim and config.checkpoint.init_dim == "same":
            raise UserError(
                f"{found.path}: table {table.name!r} has dim {found.dim} there, {table.dim} here; give it "
                'that dim, or set checkpoint.init_dim = "fit": rows are cut, or filled up with zeros'
            )
    return pairs


def _fitted(rows: Array, dim: int) -> Array:
    if rows.shape[1] >= dim:
        return rows[:, :dim]
    return np.pad(rows, ((0, 0), (0, dim - rows.shape[1])))


def _tables_of(path: Path) -> dict[str, ForeignTable]:
    """Returns the tables of a file, or of all files of a folder.

    Raises UserError for a file that can't be read, and for a table in two files.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file; expected a checkpoint, a run, or a file of tables")
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.suffix in ENDS)
    tables: dict[str, ForeignTable] = {}
    for file in files:
        open_file = {".parquet": _parquet, ".safetensors": _safetensors}.get(file.suffix, _state_dict)
        try:
            found = open_file(file)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # of the libraries, of many kinds
            raise UserError(f"{file}: can't be read: {_line(error)}") from error
        for name, table in found.items():
            if name in tables:
                raise UserError(f"{file}: got table {name!r}, which is in {tables[name].path} too")
            tables[name] = table
    return tables


def _name_of(path: Path) -> str:
    return unquote(path.stem)  # as `tables.file_name` makes them


def _parquet(path: Path) -> dict[str, ForeignTable]:
    try:
        import polars as pl
    except ModuleNotFoundError as error:
        raise needs_package(f"{path}", "polars") from error

    schema = pl.read_parquet_schema(path)
    kind, number = schema.get("embedding"), schema.get("id")
    width = getattr(kind, "size", None)
    if number not in (pl.UInt64, pl.Int64) or getattr(kind, "inner", None) != pl.Float32:
        listed = ", ".join(f"{column} {kind}" for column, kind in schema.items())
        raise UserError(
            f"{path}: expected columns `id`, int64 or uint64, and `embedding`, lists of float32, as "
            f"`persia-hpc export --tables parquet` writes them, got {listed}"
        )
    if width is None:  # lists, all of one length
        first = pl.scan_parquet(path).head(1).collect()
        width = len(first["embedding"][0]) if len(first) and first["embedding"][0] is not None else 0

    def read() -> Iterator[tuple[Array, Array]]:
        scan = pl.scan_parquet(path)
        rows = scan.select(pl.len()).collect().item()
        for at in range(0, rows, ROWS_AT_ONCE):
            frame = scan.slice(at, ROWS_AT_ONCE).select("id", "embedding").collect()
            if any(frame.null_count().row(0)):
                raise UserError(f"{path}: got missing values in rows {at} to {at + len(frame)}")
            lists = frame["embedding"]
            flat = lists.explode().to_numpy()
            if len(flat) != len(frame) * width or (
                lists.dtype == pl.List and (lists.list.len() != width).any()
            ):
                raise UserError(
                    f"{path}: got lists of several lengths in `embedding`, expected {width} values"
                )
            yield frame["id"].to_numpy().view(np.uint64), flat.reshape(len(frame), width)

    return {_name_of(path): ForeignTable(path, int(width), _guarded(path, read))}


def _safetensors(path: Path) -> dict[str, ForeignTable]:
    try:
        from safetensors import safe_open
    except ModuleNotFoundError as error:
        raise needs_package(f"{path}", "safetensors") from error

    with safe_open(str(path), "np") as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        shapes = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    ids_shape, ids_type = shapes.get(IDS, ([], ""))
    rows_shape, rows_type = shapes.get(EMBEDDINGS, ([], ""))
    if len(ids_shape) != 1 or len(rows_shape) != 2 or ids_shape != rows_shape[:1] or rows_type != "F32":
        listed = ", ".join(f"{name} {kind}{shape}" for name, (shape, kind) in shapes.items())
        raise UserError(
            f"{path}: expected {IDS}, I64 or U64 [N], and {EMBEDDINGS}, F32 [N, D], got {listed or 'nothing'}"
        )
    if ids_type not in ("I64", "U64"):
        raise UserError(f"{path}: got {IDS} of type {ids_type}, expected I64 or U64")

    def read() -> Iterator[tuple[Array, Array]]:
        with safe_open(str(path), "np") as file:
            ids, rows = file.get_slice(IDS), file.get_slice(EMBEDDINGS)
            for at in range(0, ids_shape[0], ROWS_AT_ONCE):
                end = min(at + ROWS_AT_ONCE, ids_shape[0])
                yield ids[at:end].view(np.uint64), rows[at:end]

    return {_name_of(path): ForeignTable(path, int(rows_shape[1]), _guarded(path, read))}


def _state_dict(path: Path) -> dict[str, ForeignTable]:
    import torch  # a file of torch's, and only then

    content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tables: dict[str, ForeignTable] = {}
    for key, tensor in content.items() if isinstance(content, Mapping) else ():
        match = STATE_KEY.search(str(key))
        if match is None or not isinstance(tensor, torch.Tensor) or tensor.dim() != 2:
            continue
        if match[1] in tables:
            raise UserError(f"{path}: got table {match[1]!r} under two keys, expected one")
        tables[match[1]] = ForeignTable(path, tensor.shape[1], _guarded(path, _slices_of(tensor)))
    if not tables:
        raise UserError(
            f"{path}: expected a state dict with tensors [N, D] named `embedding_bags.TABLE.weight` or "
            "`embeddings.TABLE.weight`, as TorchRec's collections have"
        )
    return tables


def _slices_of(tensor: Any) -> Read:
    """Returns what reads the rows of a tensor; the number of a row is its id."""

    def read() -> Iterator[tuple[Array, Array]]:
        for at in range(0, len(tensor), ROWS_AT_ONCE):
            rows = tensor[at : at + ROWS_AT_ONCE].float().numpy()
            yield np.arange(at, at + len(rows), dtype=np.uint64), rows

    return read


def _guarded(path: Path, read: Read) -> Read:
    """Returns what reads the same, and tells what goes wrong with a file, whatever it is, as its damage."""

    def guarded() -> Iterator[tuple[Array, Array]]:
        try:
            yield from read()
        except (UserError, MemoryError):
            raise
        except Exception as error:
            raise DataError(f"{path}: can't be read: {_line(error)}; write it again") from error

    return guarded


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c for c in text[:200] if c.isprintable())
