"""Reads dataset files of either format: HDF5 (datafile.py), or Parquet (parquet.py) with a table's schema.

What needs polars is imported with the first Parquet file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from persia_hpc.config.types import DataConfig
from persia_hpc.errors import UserError, needs_package
from persia_hpc.samples import datafile, encoding
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.samples.encoding import matches
from persia_hpc.samples.parquet_footer import ENCRYPTED, MAGIC
from persia_hpc.samples.schema import FeatureSchema

if TYPE_CHECKING:
    from persia_hpc.preprocess.table.schema import TableSchema


class RowFile(Protocol):
    """Is an open dataset file. Not thread-safe."""

    def read(self, begin: int, end: int) -> SampleBatch:
        """Returns the rows [begin, end).

        Raises DataError, which names the file and the rows, for damage or invalid values.
        """

    def close(self) -> None:
        """Closes the file."""


def is_parquet(path: str) -> bool:
    """Returns whether a file begins as Parquet files do."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) in (MAGIC, ENCRYPTED)
    except OSError:  # whoever reads it says why
        return False


def load_table(path: str | None, *, labels: bool = True) -> TableSchema | None:
    """Returns the schema of Parquet files, `data.schema`; None if the configuration names none.

    labels: False leaves its labels out, for files that are only scored.
    Raises UserError for one that can't be read, or that asks for something to be learned from rows.
    """
    if path is None:
        return None
    _need_polars("data.schema")
    from persia_hpc.samples import parquet

    return parquet.load_table(path, labels=labels)


def scan(path: str, table: TableSchema | None = None) -> FileInfo:
    """Returns what a file holds; reads no samples.

    Raises UserError, which names the file, if it can't be used.
    """
    if not (os.path.isfile(path) and is_parquet(path)):
        return datafile.scan(path)
    if table is None:
        raise UserError(
            f"{path}: got a Parquet file, expected data.schema beside it (--schema FILE for inspect), the "
            "TOML file that says what its columns are (datasets/table/README.md); or make HDF5 of it with "
            "`persia-hpc preprocess table`"
        )
    from persia_hpc.samples import parquet

    return parquet.scan(path, table)


def open_file(
    info: FileInfo,
    features: tuple[FeatureSchema, ...],
    binary_labels: bool,
    cache_bytes: int,
    table: TableSchema | None,
) -> RowFile:
    """Opens a scanned file to read these features of it; the arguments are those of `datafile.OpenFile`.

    Raises DataError if it isn't what was scanned.
    """
    if not info.row_groups:
        return datafile.OpenFile(info, features, binary_labels, cache_bytes)
    assert table is not None, "scan has asked for it"
    _need_polars(info.path)
    from persia_hpc.samples import parquet

    return parquet.OpenParquet(info, features, binary_labels, table)


def read_times(path: str, begin: int, end: int, table: TableSchema | None = None) -> npt.NDArray[np.int64]:
    """Returns the times of rows [begin, end), int64, of a scanned file that has them.

    Raises DataError if they can't be read.
    """
    if table is None or not is_parquet(path):
        return datafile.read_times(path, begin, end)
    from persia_hpc.samples import parquet

    return parquet.read_times(path, begin, end, table)


def read_offsets(
    path: str, features: Sequence[str], begin: int, end: int, table: TableSchema | None = None
) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the offsets of rows [begin, end) of multi-hot features of a scanned file, from 0 on.

    Shapes: [end - begin + 1] for each.
    Raises DataError if they can't be read.
    """
    if table is None or not is_parquet(path):
        return datafile.read_offsets(path, features, begin, end)
    from persia_hpc.samples import parquet

    return parquet.read_offsets(path, features, begin, end, table)


def keep_encoding(data: DataConfig, digest: str | None, directory: Path) -> None:
    """Writes the encoding of the training data into a run's directory, for data that are prepared later.

    That of HDF5 files lies beside them; Parquet files have that of their schema.
    """
    paths = () if data.schema is None else matches(data.train)
    path = next(filter(is_parquet, paths), None)
    if path is None:
        encoding.keep_encoding(data.train, digest, directory)
        return
    from persia_hpc.samples import parquet

    with suppress(UserError):  # gone, or another one now: no reason to end a run
        table = load_table(data.schema)
        assert table is not None
        content = parquet.read_encoding(path, table)
        if content["digest"] == digest:
            encoding.write_encoding(directory, content)


def _need_polars(what: str) -> None:
    try:
        import_module("polars")
    except ModuleNotFoundError as error:
        raise needs_package(f"{what}: reading Parquet", "polars") from error
